"""A renderer of small street scenes with exact labels: a data set for tests and first steps, made in seconds.

The scene is a road that may bend. Every object has road coordinates in metres: d to the right of the road's middle, y up,
z along the view. A pinhole camera projects them, and a depth buffer resolves occlusion. Ids are the indices in `CLASSES`;
255 is void: grass, bins, flower boxes, dogs and the bonnet of the car that carries the camera.
"""

from pathlib import Path

import cv2
import numpy as np

from util.visual import save_png

CLASSES = ("road", "pavement", "building", "sky", "tree", "car", "person", "pole", "sign")
ROAD, PAVEMENT, BUILDING, SKY, TREE, CAR, PERSON, POLE, SIGN = range(len(CLASSES))
VOID = 255
SUPERSAMPLE = 2  # drawn at this multiple of the size, then averaged: smooth edges in the image, hard ones in the label

# mood: zenith, horizon (RGB), tint of the light, strength of the sun, fog per metre
MOODS = {
    "day": ((72, 128, 206), (196, 216, 236), (1.0, 1.0, 0.98), 1.0, 0.002),
    "overcast": ((158, 166, 178), (206, 210, 214), (0.82, 0.84, 0.88), 0.15, 0.004),
    "dusk": ((58, 66, 124), (246, 168, 118), (0.66, 0.54, 0.56), 0.6, 0.004),
    "fog": ((188, 192, 196), (204, 206, 208), (0.86, 0.88, 0.90), 0.0, 0.022),
}
WALLS = ((112, 110, 108), (138, 134, 130), (168, 160, 148), (150, 82, 64), (178, 112, 82), (206, 184, 142),
         (216, 206, 190), (172, 188, 196), (214, 172, 150), (126, 142, 132))  # fmt: skip
PAINTS = ((186, 30, 34), (34, 70, 150), (226, 226, 226), (30, 32, 36), (132, 136, 142), (90, 96, 104), (214, 166, 30),
          (40, 112, 92), (150, 84, 50))  # fmt: skip
LEAVES = ((62, 104, 42), (84, 122, 48), (50, 88, 58), (110, 122, 52), (176, 122, 44), (162, 82, 44))
SKINS = ((236, 196, 168), (206, 156, 120), (150, 104, 74), (98, 66, 48))


def render_scene(rng, height=192, width=256):
    """One scene: image (height, width, 3) uint8 RGB and label (height, width) uint8 in 0..8 or 255.

    rng: a numpy Generator; the same state gives the same pixels.
    """
    scene = Scene(rng, height * SUPERSAMPLE, width * SUPERSAMPLE)
    scene.draw_sky()
    scene.draw_ground()
    scene.draw_backdrop()
    for side in (-1, 1):
        scene.furnish(side)
    scene.traffic()
    if rng.random() < 0.3:
        scene.draw_bonnet()
    return scene.develop(height, width)


def write_scene(job):
    """Render one scene and write its two PNGs; returns how often each id is in each row of the label, (H, 256) int64.

    job: (numbers that seed it, height, width, folder, file name below image/ and label/)
    """
    seed, height, width, out, name = job
    image, label = render_scene(np.random.default_rng(seed), height, width)
    save_png(Path(out) / "image" / name, image)
    save_png(Path(out) / "label" / name, label)
    return np.stack([np.bincount(row, minlength=256) for row in label])


class Scene:
    """Camera, light and the buffers: colour (H, W, 3) float32, label (H, W) uint8, inverse depth (H, W) float32."""

    def __init__(self, rng, height, width):
        self.rng, self.h, self.w = rng, height, width
        # Camera: horizon and vanishing point vary, so that the position alone predicts the class poorly.
        self.focal = width * rng.uniform(0.65, 0.95)
        self.horizon = height * rng.uniform(0.3, 0.6)
        self.middle = width * rng.uniform(0.4, 0.6)
        self.eye = rng.uniform(1.5, 2.8)
        self.heading = rng.uniform(-0.3, 0.3)
        self.bend = rng.uniform(-0.008, 0.008)
        # Street: half the road's width, and the depth of the pavement on the left and on the right.
        self.half = rng.uniform(2.8, 5.5)
        self.walk = {side: rng.uniform(1.8, 5.0) for side in (-1, 1)}
        self.shift = rng.uniform(-1, 1) * (self.half + 1.5)  # where the camera stands; sometimes on the pavement
        # Light.
        self.mood = str(rng.choice(list(MOODS), p=(0.4, 0.25, 0.2, 0.15)))
        zenith, haze, tint, self.sun, self.fog = MOODS[self.mood]
        self.zenith, self.haze = _vary(rng, zenith, 12), _vary(rng, haze, 8)
        self.tint = np.array(tint) * rng.uniform(0.85, 1.1)
        self.sun_side = rng.choice((-1, 1))  # +1: the sun stands on the right
        self.sun_reach = (-self.sun_side * rng.uniform(0.3, 1.1), rng.uniform(-0.2, 0.5))  # shadow (d, z) a metre

        self.colour = np.zeros((height, width, 3), np.float32)
        self.label = np.full((height, width), SKY, np.uint8)
        self.near = np.zeros((height, width), np.float32)  # 1/z; 0 is the sky
        self.shade = np.zeros((height, width), np.float32)  # shadow on the ground
        self.ground = np.zeros((height, width), bool)

    # ---- geometry and painting

    def project(self, points):
        """(N, 3) road coordinates (d, y, z) in metres -> (N, 2) pixels (u, v)."""
        d, y, z = np.asarray(points, float).T
        x = d + self.heading * z + self.bend * z * z - self.shift
        return np.stack([self.middle + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z], 1)

    def paint(self, u, v, mask, colour, label, near):
        """Draw a patch with its corner at pixel (u, v), where `mask` holds and no nearer surface is drawn already."""
        h, w = mask.shape
        top, left, bottom, right = max(v, 0), max(u, 0), min(v + h, self.h), min(u + w, self.w)
        if top >= bottom or left >= right:
            return
        here = np.s_[top:bottom, left:right]
        cut = np.s_[top - v : bottom - v, left - u : right - u]
        near = near[cut] if np.ndim(near) else near
        won = mask[cut].astype(bool) & (near >= self.near[here] * 0.999)
        colour = np.broadcast_to(np.asarray(colour, np.float32), (h, w, 3))[cut]
        self.colour[here][won] = colour[won]
        self.label[here][won] = label
        self.near[here][won] = near[won] if np.ndim(near) else near
        self.ground[here][won] = False

    def mask_of(self, pixels, convex=False):
        """The mask (h, w) of a polygon (N, 2) and its corner (u, v) in the image; its size is 0 outside the image."""
        low = np.maximum(np.floor(pixels.min(0)), 0).astype(int)
        high = np.minimum(np.ceil(pixels.max(0)) + 1, (self.w, self.h)).astype(int)
        mask = np.zeros(np.maximum(high - low, 0)[::-1], np.uint8)
        points = np.rint(pixels - low).astype(np.int32)
        if mask.size and convex:
            cv2.fillConvexPoly(mask, points, 1)
        elif mask.size:
            cv2.fillPoly(mask, [points], 1)
        return *low, mask

    def polygon(self, pixels, colour, label, z):
        """A flat polygon of pixels (N, 2) at depth z."""
        u, v, mask = self.mask_of(pixels)
        self.paint(u, v, mask, colour, label, 1 / z)

    def face(self, corners, texture, label):
        """A plane with corners (4, 3), clockwise from the top left, covered with a texture (h, w, 3) float32."""
        pixels = self.project(corners)
        u, v, mask = self.mask_of(pixels, convex=True)
        if not mask.size or abs(cv2.contourArea(pixels.astype(np.float32))) < 1:
            return
        h, w = mask.shape
        th, tw = texture.shape[:2]
        source = np.array([(0, 0), (tw, 0), (tw, th), (0, th)], np.float32)
        warp = cv2.getPerspectiveTransform(source, (pixels - (u, v)).astype(np.float32))
        colour = cv2.warpPerspective(texture, warp, (w, h), borderMode=cv2.BORDER_REPLICATE)
        # On a plane 1/z is an affine function of the pixel.
        system = np.column_stack([pixels - (u, v), np.ones(4)])
        a, b, c = np.linalg.lstsq(system, 1 / np.array(corners, float)[:, 2], rcond=None)[0]
        near = a * np.arange(w)[None] + b * np.arange(h)[:, None] + c
        self.paint(u, v, mask, colour, label, near.astype(np.float32))

    def block(self, near, far, height, z0, z1, front, end, label):
        """A box along the road from z0 to z1: its shadow, and its faces at d = near and at z = z0 with their textures."""
        self.face([(near, height, z0), (near, height, z1), (near, 0, z1), (near, 0, z0)], front, label)
        self.face([(near, height, z0), (far, height, z0), (far, 0, z0), (near, 0, z0)], end, label)
        self.cast(min(near, far), max(near, far), z0, height, depth=z1 - z0)

    def card(self, points, d, z, colour, label):
        """An upright polygon (N, 2), metres (right, up), at (d, 0, z), facing the camera."""
        foot = self.project([(d, 0, z)])[0]
        self.polygon(foot + np.asarray(points, float) * (1, -1) * self.focal / z, colour, label, z)

    def cast(self, left, right, z, height, depth=0.3):
        """The shadow of a box (metres) on the ground: one below it and, in the sun, one in the light's direction."""
        base = [(left, 0, z), (right, 0, z), (right, 0, z + depth), (left, 0, z + depth)]
        self.darken(self.project(base), 0.5)
        if self.sun > 0.3:
            step = np.array([self.sun_reach[0], 0, self.sun_reach[1]]) * height
            tip = np.add(base, step)
            tip[:, 2] = np.maximum(tip[:, 2], 0.8)
            hull = cv2.convexHull(self.project([*base, *tip]).clip(-1e4, 1e4).astype(np.float32))
            self.darken(hull[:, 0], 0.45 * self.sun)

    def darken(self, pixels, amount):
        """Reduce the light on a patch of ground, a polygon of pixels (N, 2), by this share."""
        u, v, mask = self.mask_of(pixels)
        part = self.shade[v : v + mask.shape[0], u : u + mask.shape[1]]
        np.maximum(part, mask * np.float32(amount), out=part)

    # ---- background and streets

    def draw_sky(self):
        v = np.linspace(0, 1, self.h)[:, None, None] * self.h / max(self.horizon, 1)
        sky = self.zenith + (self.haze - self.zenith) * np.clip(v, 0, 1) ** 1.4
        if self.mood != "fog":
            cover = 0.75 if self.mood == "overcast" else self.rng.uniform(0, 0.6)
            cloud = _noise(self.rng, self.h, self.w, (self.h // 3, self.w // 2), octaves=5)
            cloud = np.clip((cloud + cover - 0.75) * 3, 0, 1)[..., None]
            white = np.array((235, 150, 130) if self.mood == "dusk" else (240, 242, 245))
            sky = sky + (self.haze * 0.4 + white * 0.6 - sky) * cloud * 0.8
        self.colour[:] = sky

    def draw_ground(self):
        rng = self.rng
        first = max(int(self.horizon) + 1, 0)
        v, u = np.mgrid[first : self.h, 0 : self.w].astype(np.float32)
        z = np.minimum(self.focal * self.eye / (v - self.horizon), 400)
        d = (u - self.middle) * z / self.focal - self.heading * z - self.bend * z * z + self.shift
        phase = rng.uniform(0, 10)
        along = z + phase

        # Grain is looked up in road coordinates, so that it shrinks with distance; far away it averages out.
        grain = _noise(rng, 256, 256, (4, 4), octaves=2) + 0.6 * _noise(rng, 256, 256, (64, 64), octaves=2)
        fade = np.clip(12 / z, 0, 1)
        grain = (grain[(d * 12).astype(np.int32) & 255, (along * 12).astype(np.int32) & 255] - 0.8) * fade

        asphalt = _vary(rng, (1, 1, 1), 0.03) * rng.uniform(74, 132)
        colour = (asphalt + grain[..., None] * rng.uniform(15, 45)).astype(np.float32)
        wheel = np.exp(-(((np.abs(np.abs(d) - self.half / 2) - 0.8) / 0.35) ** 2))
        colour -= (wheel * rng.uniform(0, 12))[..., None]
        label = np.full(z.shape, ROAD, np.uint8)

        white = np.array(rng.choice(((216, 216, 210), (216, 216, 210), (222, 186, 84))), np.float32)
        lanes = [0.0] if self.half > 3.2 else []
        if rng.random() < 0.5:
            lanes += [-self.half + 0.4, self.half - 0.4]
        dash = rng.uniform(0.4, 0.7) if rng.random() < 0.7 else 1.0
        mark = np.zeros(z.shape, bool)
        for lane in lanes:
            mark |= (np.abs(d - lane) < 0.09) & ((along % 5 < 5 * dash) | (lane != 0))
        if rng.random() < 0.35:
            start = rng.uniform(4, 16)
            mark[(z > start) & (z < start + 3)] = False
            mark |= (z > start) & (z < start + 3) & (d % 1.0 < 0.5) & (np.abs(d) < self.half - 0.2)
            self.crossing = start + 1.5
        else:
            self.crossing = None
        wear = rng.uniform(0.5, 0.95)
        colour[mark] += (white - colour[mark]) * wear

        paving = _vary(rng, [(150, 148, 144), (124, 122, 122), (168, 156, 140), (160, 130, 116)][rng.integers(4)], 10)
        tile = rng.uniform(0.5, 1.2)
        joint = ((d % tile < 0.06) | (along % tile < 0.06)) * fade * rng.uniform(8, 28)
        slab = _noise(rng, 64, 64, (1, 1), octaves=1)[(d / tile).astype(np.int32) & 63, (along / tile).astype(np.int32) & 63]
        paved = paving.astype(np.float32) + (grain * 18 - joint + (slab - 0.5) * 16 * fade)[..., None]
        meadow = _vary(rng, (96, 120, 62), 10).astype(np.float32) + (grain * 60)[..., None]
        for side in (-1, 1):
            out = d * side
            walk = (out >= self.half) & (out < self.half + self.walk[side])
            colour[walk], label[walk] = paved[walk], PAVEMENT
            curb = (out >= self.half) & (out < self.half + 0.18)
            colour[curb] = paving * 1.12
            colour[(out > self.half - 0.12) & (out < self.half)] *= 0.75  # the gutter
            beyond = out >= self.half + self.walk[side]
            colour[beyond], label[beyond] = meadow[beyond], VOID

        self.colour[first:], self.label[first:] = colour, label
        self.near[first:], self.ground[first:] = 1 / z, True

    def draw_backdrop(self):
        """A line of trees and roofs along the horizon."""
        rng, z = self.rng, 110.0
        u = 0
        while u < self.w:
            width = int(rng.uniform(0.04, 0.16) * self.w)
            tall = rng.random() < 0.45
            height = self.focal / z * (rng.uniform(6, 22) if tall else rng.uniform(4, 9))
            x = np.linspace(0, width, 24)
            base = self.horizon + self.focal * self.eye / z + 1
            if tall:
                tops = np.full(24, base - height)
                colour, label = _vary(rng, WALLS[rng.integers(len(WALLS))], 10), BUILDING
            else:
                tops = base - height * (0.55 + 0.45 * np.sin(np.linspace(0, np.pi, 24))) - rng.uniform(0, 3, 24)
                colour, label = _vary(rng, LEAVES[rng.integers(4)], 10), TREE
            shape = np.concatenate([np.stack([u + x * 1.3, tops], 1), [(u + width * 1.3, base), (u, base)]])
            self.polygon(shape, colour, label, z)
            u += width

    def furnish(self, side):
        """Houses or gaps, trees, lamps, signs, parked cars and people along one side of the road."""
        rng = self.rng
        line = self.half + self.walk[side]
        crowd = rng.uniform(0.1, 1.0)  # how closely built, planted and parked this side is
        green = rng.uniform(0, 1)
        z = rng.uniform(-12, 3)
        while z < 90:
            length = rng.uniform(7, 20)
            if rng.random() < 0.35 + 0.6 * crowd:
                self.house(side, line + rng.choice((0.0, 0.0, 1.0, 3.0)), z, z + length)
                z += length + (0 if rng.random() < crowd else rng.uniform(1, 8))
            else:
                if rng.random() < 0.5:
                    self.hedge(side, line + 0.3, max(z, 1.2), z + length)
                for _ in range(rng.integers(0, 4)):
                    self.tree(side * (line + rng.uniform(1.5, 12)), z + rng.uniform(0, length))
                z += length

        kerb = self.half + min(0.8, self.walk[side] / 3)
        step = rng.uniform(7, 14)
        if green > 0.45:
            for z in np.arange(rng.uniform(3, 10), 60, step):
                if rng.random() < 0.8:
                    self.tree(side * (kerb + rng.uniform(-0.1, 0.3)), z + rng.uniform(-1, 1))
        for z in np.arange(rng.uniform(4, 16), 70, rng.uniform(12, 24)):
            self.lamp(side, side * (kerb - 0.2), z)
        for _ in range(rng.integers(1, 4)):
            self.sign(side * (kerb - rng.uniform(0, 0.3)), rng.uniform(4.5, 22))
        for _ in range(rng.poisson(3)):
            reach = self.half + rng.uniform(0.3, self.walk[side] - 0.3)
            self.person(side * reach, rng.uniform(3.5, 20))
        for _ in range(rng.poisson(0.5)):
            self.clutter(side * (self.half + self.walk[side] * rng.uniform(0.4, 0.9)), rng.uniform(4, 16))
        if self.half > 3.6:
            z = rng.uniform(4, 14)
            while z < 55 and rng.random() < 0.35 + 0.5 * crowd:
                self.car(side * (self.half - 1.1), z, rng.random() < 0.5)
                z += rng.uniform(5.2, 13)

    def traffic(self):
        """Moving cars, and people on the crossing."""
        rng = self.rng
        lane = self.half / 2 if self.half <= 3.6 else (self.half - 2.2) / 2
        for side in (-1, 1):
            z = rng.uniform(7, 30)
            while z < 70 and rng.random() < 0.6:
                self.car(side * lane + rng.uniform(-0.2, 0.2), z, side < 0)
                z += rng.uniform(7, 25)
        if self.crossing is not None:
            for _ in range(rng.integers(0, 4)):
                self.person(rng.uniform(-1, 1) * self.half, self.crossing + rng.uniform(-1, 1))

    # ---- objects

    def house(self, side, d, z0, z1):
        """A box along the road from z0 to z1, its front `d` from the road's middle; low ones have a pitched roof."""
        rng = self.rng
        z0, z1 = max(z0, 1.2), max(z1, 1.3)
        if z1 - z0 < 1:
            return
        deep, floors = rng.uniform(7, 12), rng.integers(1, 6)
        height = floors * 3.0 + rng.uniform(0.4, 1.4)
        wall = _vary(rng, WALLS[rng.integers(len(WALLS))], 14)
        style = rng.uniform(0, 1, 4)
        scale = float(np.clip(self.focal / z0, 3, 26))  # texture pixels a metre: as fine as the picture shows
        facing = 1 + self.sun * (0.12 if side != self.sun_side else -0.25)
        near, far = side * d, side * (d + deep)
        front = self.facade(wall, z1 - z0, height, floors, style, scale, shop=rng.random() < 0.35) * facing
        end = self.facade(wall, deep, height, floors, style, scale, shop=False, bare=rng.random() < 0.4)
        end = end * (1 + self.sun * (0.1 if self.sun_reach[1] > 0 else -0.12))
        self.block(near, far, height, z0, z1, front, end, BUILDING)
        if floors <= 3 and rng.random() < 0.75:
            rise, half = rng.uniform(1.5, 3.5), (near + far) / 2
            tiles = _vary(rng, [(132, 70, 52), (92, 60, 54), (84, 86, 92)][rng.integers(3)], 10)
            rows = np.tile(np.array([[0.92], [1.0], [1.05]]), (8, 6))[..., None]
            roof = (tiles * rows * facing).astype(np.float32)
            ridge = height + rise
            self.face([(half, ridge, z0), (half, ridge, z1), (near, height, z1), (near, height, z0)], roof, BUILDING)
            gable = self.project([(near, height, z0), (half, ridge, z0), (far, height, z0)])
            self.polygon(gable, wall * 0.95, BUILDING, z0)

    def facade(self, wall, width, height, floors, style, scale, shop=False, bare=False):
        """A wall texture (height * scale, width * scale, 3) float32 with courses, windows, doors and shop fronts."""
        rng = self.rng
        h, w = max(int(height * scale), 4), max(int(width * scale), 4)
        texture = np.ones((h, w, 3), np.float32) * wall.astype(np.float32)
        texture += (_noise(rng, h, w, (max(h // 3, 2), max(w // 4, 2)), octaves=4)[..., None] - 0.5) * 26
        if style[0] < 0.4:  # brick or stone courses
            course = max(int(0.3 * scale), 2)
            texture[::course] *= 0.9
        texture[: max(int(0.35 * scale), 1)] *= 0.85 if style[0] < 0.7 else 1.15  # cornice
        if bare:
            return texture
        glass = _vary(rng, (70, 84, 100), 12)
        frame = (wall * 1.25 if style[1] < 0.6 else wall * 0.7).astype(np.float32)
        wide, tall = 0.8 + 1.0 * style[2], 1.2 + 0.7 * style[3]
        pitch = wide + 0.7 + 1.2 * style[1]
        count = max(int(width / pitch), 1)
        pitch = width / count
        evening = {"dusk": 0.4, "fog": 0.12, "overcast": 0.05}.get(self.mood, 0.0)

        def box(left, bottom, right, top, colour):
            x0, x1, y0, y1 = int(left * scale), int(right * scale), int(h - top * scale), int(h - bottom * scale)
            cv2.rectangle(texture, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), [float(c) for c in colour], -1)

        for floor in range(floors):
            y = floor * 3.0
            if floor == 0 and shop:
                box(0.4, 2.5, width - 0.4, 3.1, _vary(rng, PAINTS[rng.integers(len(PAINTS))], 20))  # the shop's board
                pane = np.array((250, 214, 150)) / self.tint if rng.random() < evening * 2 else glass * 0.9
                for left in np.arange(0.5, width - 1.5, 2.4):
                    box(left, 0.5, min(left + 2.1, width - 0.4), 2.4, pane)
                continue
            for i in range(count):
                x = (i + 0.5) * pitch
                if floor == 0 and i == count // 2:
                    box(x - 0.55, 0, x + 0.55, 2.2, _vary(rng, (92, 62, 44), 25))
                    continue
                lit = rng.random() < evening
                pane = np.array((255, 208, 130)) / self.tint if lit else glass * rng.uniform(0.8, 1.25)
                box(x - wide / 2 - 0.12, y + 0.78, x + wide / 2 + 0.12, y + 1.02 + tall, frame)
                box(x - wide / 2, y + 0.9, x + wide / 2, y + 0.9 + tall, pane)
                box(x - 0.04, y + 0.9, x + 0.04, y + 0.9 + tall, frame)
        return texture

    def hedge(self, side, d, z0, z1):
        rng = self.rng
        height = rng.uniform(0.9, 2.0)
        leaf = _vary(rng, LEAVES[rng.integers(4)], 10)
        texture = (leaf * (0.55 + 0.8 * _noise(rng, 48, 160, (8, 8), octaves=3)[..., None])).astype(np.float32)
        self.block(side * d, side * (d + 0.8), height, z0, z1, texture, texture, TREE)

    def tree(self, d, z):
        """A trunk and a crown: a few hundred leafy discs or the tiers of a fir, lighter where the sun comes from."""
        rng = self.rng
        height = rng.uniform(4.5, 9)
        girth = height * rng.uniform(0.28, 0.42)  # half the crown's width
        unit = self.focal / z  # pixels a metre
        foot = self.project([(d, 0, z)])[0]
        if z < 3 or girth * unit > 0.55 * self.w or abs(foot[0] - self.w / 2) > self.w:
            return  # it would hide the street, or stands outside the picture
        fir = rng.random() < 0.2
        stem = height * (0.15 if fir else rng.uniform(0.25, 0.4))
        leaf = _vary(rng, LEAVES[rng.integers(4 if fir else len(LEAVES))], 12)
        lean = rng.uniform(-0.3, 0.3)
        self.cast(d - girth / 2, d + girth / 2, z, height * 0.8, depth=girth * 0.5)
        trunk = [(-0.17, 0), (0.17, 0), (lean * 0.5 + 0.1, stem * 1.4), (lean * 0.5 - 0.1, stem * 1.4)]
        self.card(trunk, d, z, _vary(rng, (88, 70, 56), 12), TREE)

        w, h = int(2.6 * girth * unit) + 4, int((height - stem + girth * 0.4) * unit) + 4
        sprite, mask = np.zeros((h, w, 3), np.float32), np.zeros((h, w), np.uint8)
        sunny = self.sun_side * (0.3 + self.sun)
        if fir:
            for tier in range(6):
                x = np.linspace(-1, 1, 15) * (1 - tier / 7.5) * girth * 0.75 * unit + w / 2
                y = h * (0.98 - tier * 0.135) - np.tile((0.0, 0.035), 8)[:15] * h * rng.uniform(0.6, 1.4, 15)
                top = (w / 2, h * max(0.66 - tier * 0.13, 0.02))
                for part, sign in ((slice(0, 8), -1), (slice(7, 15), 1)):
                    flank = np.rint([*zip(x[part], y[part]), top]).astype(np.int32)
                    shade = 0.72 + 0.06 * tier + 0.12 * sign * sunny
                    cv2.fillPoly(sprite, [flank], [float(c) for c in leaf * shade])
                    cv2.fillPoly(mask, [flank], 1)
        else:
            count = 260
            t = rng.uniform(0, 1, count)  # 0 at the crown's foot, 1 at its top
            spread = np.sqrt(1 - (2 * t - 1) ** 2)
            aside = rng.uniform(-1, 1, count)
            size = girth * rng.uniform(0.07, 0.22, count)
            light = 0.78 + 0.25 * t + 0.25 * aside * sunny + rng.uniform(-0.14, 0.14, count)
            for i in np.argsort(light):
                centre = (int(w / 2 + aside[i] * spread[i] * girth * unit), int(h * (0.88 - 0.76 * t[i])))
                radius = max(int(size[i] * unit), 1)
                cv2.circle(sprite, centre, radius, [float(c) for c in leaf * light[i]], -1)
                cv2.circle(mask, centre, radius, 1, -1)
        speckle = rng.uniform(0.8, 1.2, (h // 2 + 1, w // 2 + 1)).astype(np.float32)
        sprite *= cv2.resize(speckle, (w, h), interpolation=cv2.INTER_NEAREST)[..., None]
        u, v = int(foot[0] + lean * unit * 0.5 - w / 2), int(foot[1] - stem * 0.9 * unit - h)
        self.paint(u, v, mask, sprite, TREE, np.float32(1 / z))

    def lamp(self, side, d, z):
        rng = self.rng
        tall, colour = rng.uniform(4.5, 6.5), _vary(rng, (78, 80, 84), 18)
        thick = max(0.075, 0.9 * z / self.focal)  # never thinner than a pixel
        self.cast(d - 0.1, d + 0.1, z, tall, depth=0.15)
        self.card(_bar((0, 0), (0, tall), thick), d, z, colour, POLE)
        self.card(_bar((0, 0), (0, 0.9), thick * 1.5), d, z, colour * 0.9, POLE)
        reach = -side * rng.uniform(0.8, 1.6)
        self.card(_bar((0, tall - thick), (reach, tall + 0.25), thick * 0.8), d, z, colour, POLE)
        glow = np.array((255, 226, 160)) / self.tint if self.mood in ("dusk", "fog") else colour * 1.5
        self.card(_bar((reach - 0.3, tall + 0.25), (reach + 0.3, tall + 0.25), max(0.11, thick)), d, z, glow, POLE)

    def sign(self, d, z):
        """A pole with a plate: prohibition, warning, stop, blue order, direction or a traffic light."""
        rng = self.rng
        tall, size = rng.uniform(2.2, 3.0), rng.uniform(0.42, 0.62)
        thick = max(0.06, 0.9 * z / self.focal)
        red, white, blue = np.array((196, 32, 38)), np.array((238, 238, 232)), np.array((28, 84, 170))
        kind = rng.integers(6)
        self.cast(d - 0.15, d + 0.15, z, tall, depth=0.15)
        self.card(_bar((0, 0), (0, tall), thick), d, z, _vary(rng, (138, 140, 144), 14), POLE)

        def plate(points, colour):
            self.card(np.asarray(points) + (0, tall), d, z, colour, SIGN)

        if kind == 0:
            plate(_disc(size), red)
            plate(_disc(size * 0.72), white)
            plate(_bar((-size * 0.4, 0), (size * 0.4, 0), size * 0.12), np.array((40, 40, 44)))
        elif kind == 1:
            plate(_disc(size * 1.15, 3, 90), red)
            plate(_disc(size * 0.7, 3, 90), white)
        elif kind == 2:
            plate(_disc(size * 1.05, 8, 22.5), red)
            plate(_bar((-size * 0.6, 0), (size * 0.6, 0), size * 0.16), white)
        elif kind == 3:
            plate(_disc(size * 1.15, 4, 45), blue)
            plate(_bar((0, -size * 0.5), (0, size * 0.5), size * 0.12), white)
            plate(_disc(size * 0.3, 3, 90) + (0, size * 0.45), white)
        elif kind == 4:
            arrow = np.array([(-1, -0.4), (0.9, -0.4), (1.3, 0), (0.9, 0.4), (-1, 0.4)]) * size * 1.2
            plate(arrow * (rng.choice((-1, 1)), 1), _vary(rng, (228, 190, 40), 12))
            plate(_bar((-size * 0.8, 0), (size * 0.8, 0), size * 0.1), np.array((36, 36, 40)))
        else:
            plate(np.array([(-0.2, -0.55), (0.2, -0.55), (0.2, 0.55), (-0.2, 0.55)]) * 1.4, np.array((34, 36, 38)))
            lit = rng.integers(3)
            for i, lamp in enumerate(((236, 44, 40), (244, 180, 40), (60, 214, 120))):
                glow = np.array(lamp) / self.tint if i == lit else np.array((70, 66, 62))
                plate(_disc(0.19) + (0, 0.48 - 0.48 * i), glow)

    def person(self, d, z):
        """A walking person of 1.1 to 1.9 m."""
        rng = self.rng
        size = rng.uniform(1.55, 1.9) if rng.random() < 0.85 else rng.uniform(1.1, 1.4)
        skin = np.array(SKINS[rng.integers(len(SKINS))])
        hair = np.array([(40, 30, 26), (90, 60, 36), (190, 160, 100), (150, 150, 150)][rng.integers(4)])
        coat, trousers = _cloth(rng), _cloth(rng) * 0.7
        stride, swing, turn = rng.uniform(0.02, 0.17), rng.uniform(0.02, 0.14), rng.choice((-1, 1))
        self.cast(d - 0.25, d + 0.25, z, size)

        def part(points, colour):
            self.card(np.asarray(points) * size * (turn, 1), d, z, colour, PERSON)

        shoe = np.array((36, 34, 34))
        for side, dim in ((-1, 0.82), (1, 1.0)):  # the far limb first, and darker
            part(_bar((0.02 * side, 0.5), (stride * side, 0.03), 0.048), trousers * dim)
            part(_bar((stride * side, 0.02), (stride * side + 0.06, 0.02), 0.02), shoe)
        part(_bar((0.0, 0.78), (-swing, 0.47), 0.034), coat * 0.8)
        part([(-0.11, 0.82), (-0.09, 0.46), (0.1, 0.46), (0.12, 0.82), (0.05, 0.855), (-0.05, 0.855)], coat)
        if rng.random() < 0.3:  # a skirt or a long coat
            part([(-0.1, 0.55), (-0.15, 0.3), (0.15, 0.3), (0.11, 0.55)], coat * 0.95)
        part(_bar((0.02, 0.79), (swing, 0.48), 0.034), coat * 1.08)
        part(_disc(0.025) + (swing, 0.45), skin)
        part(_bar((0.0, 0.83), (0.0, 0.9), 0.03), skin * 0.9)
        part(_disc(0.068) * (0.85, 1.1) + (0.005, 0.925), skin)
        part([(-0.07, 0.9), (-0.07, 0.96), (-0.03, 1.0), (0.03, 1.0), (0.06, 0.95), (-0.02, 0.95), (-0.04, 0.89)], hair)
        if rng.random() < 0.3:  # a bag
            part(np.array([(-0.06, 0), (0.06, 0), (0.06, 0.13), (-0.06, 0.13)]) + (-0.12, 0.45), _cloth(rng))

    def clutter(self, d, z):
        """An object outside the nine classes, void: a bin, a box of flowers or a dog."""
        rng = self.rng
        kind = rng.integers(3)
        self.cast(d - 0.3, d + 0.3, z, 0.8)
        if kind == 0:
            colour = _vary(rng, [(46, 92, 62), (60, 66, 74)][rng.integers(2)], 10)
            self.card([(-0.28, 0), (0.28, 0), (0.33, 0.95), (-0.33, 0.95)], d, z, colour, VOID)
            self.card([(-0.36, 0.93), (0.36, 0.93), (0.3, 1.06), (-0.3, 1.06)], d, z, colour * 0.7, VOID)
        elif kind == 1:
            self.card([(-0.5, 0), (0.5, 0), (0.56, 0.45), (-0.56, 0.45)], d, z, np.array((140, 96, 70)), VOID)
            for _ in range(14):
                bloom = np.array([(214, 60, 84), (236, 190, 60), (232, 226, 236), (92, 132, 60)][rng.integers(4)])
                self.card(_disc(0.11, 8) + (rng.uniform(-0.48, 0.48), rng.uniform(0.42, 0.7)), d, z, bloom, VOID)
        else:
            fur = _vary(rng, [(120, 84, 54), (60, 52, 46), (206, 190, 160)][rng.integers(3)], 12)
            for x in (-0.28, -0.18, 0.18, 0.28):
                self.card(_bar((x, 0), (x, 0.35), 0.035), d, z, fur * 0.8, VOID)
            self.card(_bar((-0.3, 0.42), (0.3, 0.44), 0.13), d, z, fur, VOID)
            self.card(_bar((-0.3, 0.48), (-0.46, 0.72), 0.03), d, z, fur, VOID)
            self.card(_disc(0.13) + (0.4, 0.62), d, z, fur, VOID)
            self.card(_bar((0.42, 0.58), (0.57, 0.56), 0.05), d, z, fur * 0.85, VOID)

    def car(self, d, z, oncoming):
        """A side profile extruded over the width; only panels that face the camera are drawn."""
        rng = self.rng
        paint = _vary(rng, PAINTS[rng.integers(len(PAINTS))], 12)
        glass, dark = np.array((58, 68, 80)) * rng.uniform(0.8, 1.4), np.array((26, 26, 28))
        # Saloon, hatchback, van: points (metres from the rear, height); 3 to 6 are the cabin, 3-4 and 5-6 its windows.
        kind = rng.choice(3, p=(0.45, 0.35, 0.2))
        profile = np.array(([(0, 0.3), (0, 0.75), (0.1, 0.95), (0.75, 1.0), (1.3, 1.42),
                             (2.7, 1.45), (3.35, 0.98), (4.3, 0.82), (4.4, 0.3)],
                            [(0, 0.3), (0, 0.7), (0.05, 0.95), (0.1, 1.0), (0.5, 1.46),
                             (2.3, 1.5), (3.0, 1.0), (3.7, 0.86), (3.8, 0.3)],
                            [(0, 0.35), (0, 0.9), (0.02, 1.15), (0.03, 1.2), (0.2, 2.1),
                             (4.0, 2.15), (4.6, 1.2), (5.1, 0.95), (5.2, 0.35)])[kind])  # fmt: skip
        width, length, cabin = (1.75, 1.75, 2.0)[kind], profile[-1, 0], 3
        wheels = np.array((0.17, 0.8)) * length
        if oncoming:  # turned round: its bonnet is the near end
            profile, wheels, cabin = profile[::-1] * (-1, 1) + (length, 0), length - wheels, 2
        left, right = d - width / 2, d + width / 2
        self.cast(left, right, z, profile[:, 1].max(), depth=length)
        ground = [(left, 0, z - 0.1), (right, 0, z - 0.1), (right, 0, z + length), (left, 0, z + length)]
        self.darken(self.project(ground), 0.7)

        def draw(points, colour):
            self.polygon(self.project(points), colour, CAR, z)

        def across(a, b, colour, inset=0.0):  # a strip over the width, from profile point a to b
            draw([(left + inset, a[1], z + a[0]), (right - inset, a[1], z + a[0]),
                  (right - inset, b[1], z + b[0]), (left + inset, b[1], z + b[0])], colour)  # fmt: skip

        def rear(x0, y0, x1, y1, colour):  # a rectangle on the near end
            draw([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], colour)

        across((0.4, 0.05), (0.4, 0.45), dark, 0.05)
        for side, x in ((-1, left), (1, right)):
            if (x + self.heading * z + self.bend * z * z - self.shift) * side >= 0:
                continue  # this flank looks away from the camera
            draw([(x, y, z + s) for s, y in profile], paint * (0.9 + 0.15 * self.sun * side * self.sun_side))
            panes = profile[cabin : cabin + 4]
            panes = panes + (panes.mean(0) - panes) * 0.16
            draw([(x, y, z + s) for s, y in panes], glass)
            for s in wheels:
                draw([(x, 0.34 + y, z + s + t) for t, y in _disc(0.34)], dark)
                draw([(x, 0.34 + y, z + s + t) for t, y in _disc(0.18)], np.array((150, 152, 156)))
        for i in reversed(range(len(profile) - 1)):
            a, b = profile[i], profile[i + 1]
            low, high = self.project([(d, a[1], z + a[0]), (d, b[1], z + b[0])])[:, 1]
            if high < low:  # else it is turned away
                across(a, b, paint * (1.15 - 0.3 * abs(b[1] - a[1]) / abs(b - a).sum()))
                if i == cabin:
                    across(a * 0.94 + b * 0.06, a * 0.08 + b * 0.92, glass, 0.12)
        low, high = profile[0, 1], profile[1, 1]
        for x in (left, right - 0.24):
            rear(x, 0, x + 0.24, low + 0.02, dark)
        rear(left, low, right, low + 0.14, paint * 0.55)
        if oncoming:
            lamp = np.array((255, 246, 214)) / (1 if self.mood == "day" else self.tint)
            rear(d - 0.45, low + 0.2, d + 0.45, high - 0.12, dark * 1.4)
        else:
            lamp = np.array((206, 30, 30)) / (self.tint if self.mood == "dusk" else 1)
            rear(d - 0.27, low + 0.18, d + 0.27, low + 0.3, np.array((226, 226, 220)))
        for x in (left + 0.06, right - 0.36):
            rear(x, high - 0.2, x + 0.3, high - 0.04, lamp)

    def draw_bonnet(self):
        """The bonnet of the car with the camera at the lower edge, as in many driving data sets: void."""
        rng = self.rng
        u = np.linspace(0, 1, 40)
        rise = self.h * rng.uniform(0.03, 0.09) * np.clip(np.sin(np.pi * (u * 0.9 + 0.05)), 0, 1) ** 0.5
        edge = np.stack([u * self.w, self.h - rise], 1)
        colour = _vary(rng, PAINTS[rng.integers(len(PAINTS))], 10)
        self.polygon(np.concatenate([edge, [(self.w, self.h + 2), (0, self.h + 2)]]), colour * 0.8, VOID, 0.5)
        self.polygon(np.concatenate([edge, (edge + (0, self.h * 0.008))[::-1]]), colour * 1.3, VOID, 0.5)

    # ---- from buffers to the image

    def develop(self, height, width):
        """Light, shadow, fog, lens and sensor noise; then down to (height, width)."""
        rng = self.rng
        shade = cv2.GaussianBlur(self.shade, (0, 0), 1.5)
        colour = self.colour * (1 - shade * self.ground)[..., None]
        sky = (self.near == 0)[..., None]
        clear = np.exp(-self.fog / np.maximum(self.near, 1e-3))[..., None]
        air = self.haze.astype(np.float32)
        colour = np.where(sky, colour, (colour * self.tint.astype(np.float32) - air) * clear + air)
        image = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.3:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
        v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        image *= (1 - rng.uniform(0, 0.18) * (u * u + v * v) / 2)[..., None]
        image = image + rng.standard_normal(image.shape, np.float32) * rng.uniform(1.5, 6)
        label = self.label[SUPERSAMPLE // 2 :: SUPERSAMPLE, SUPERSAMPLE // 2 :: SUPERSAMPLE]
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), np.ascontiguousarray(label)


def _vary(rng, colour, amount):
    """The colour (3,) with random changes, larger in brightness than in hue."""
    return np.asarray(colour, float) + rng.normal(0, amount) + rng.normal(0, amount / 3, 3)


def _cloth(rng):
    hsv = np.array([[[rng.integers(180), rng.integers(20, 200), rng.integers(50, 230)]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(float)


def _noise(rng, height, width, cell, octaves):
    """Smooth noise (height, width) float32 in about 0..1: random grids of halving cell size, each half as strong."""
    total, weight = np.zeros((height, width), np.float32), 0.0
    for octave in range(octaves):
        rows, cols = (int(np.ceil(n / max(c >> octave, 1))) + 1 for n, c in zip((height, width), cell))
        grid = rng.random((rows, cols), np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR) * 0.5**octave
        weight += 0.5**octave
    return total / weight


def _disc(radius, corners=18, turn=0.0):
    """A regular polygon (corners, 2) of this radius; `turn` in degrees, 90 puts a corner on top."""
    angle = np.deg2rad(turn) + np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radius


def _bar(start, end, thick):
    """A rectangle (4, 2) from start to end, `thick` to either side."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = (end - start) / np.hypot(*(end - start))
    aside = np.array([-along[1], along[0]]) * thick
    return np.stack([start + aside, end + aside, end - aside, start - aside])
