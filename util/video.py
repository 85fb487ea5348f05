"""Videos: the frames of a file or a camera as RGB arrays, and an mp4 that appears whole or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path

import cv2

from util.common import Mistake, write_aside
from util.image import file_errors

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
USUAL_RATE = 25.0  # frames a second, where a camera or a file states none
LARGEST = 8190  # pixels a side of an MPEG-4 video
MISSING = 0.5, 0.1  # seconds, and part of all, that a file may state and not have: sound often ends later than the pictures
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a damaged file is one message of this program, not lines of FFmpeg


def _text(path) -> str:
    """The absolute path for OpenCV; Mistake if it is not UTF-8, which would end the program there."""
    text = str(Path(path).absolute())
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Mistake(f"{path}: the path of a video must be UTF-8 for OpenCV; rename the file or its folder") from None
    return text


class UnfitVideo(Mistake):
    """A video that cannot be written because of what it is, so that another one may be."""


class VideoReader:
    """The frames of a file, or of the camera with this number, to iterate over once: (H, W, 3) uint8 RGB, turned upright as the
    file says, all of the first one's size.

    rate: frames a second. count: frames that the file states, 0 if it states none. Raises Mistake if not one can be read.
    """

    def __init__(self, source):
        if isinstance(source, int):
            reason = f"camera {source}: no frame comes from it (not connected, or another program uses it)"
            self.capture = cv2.VideoCapture(source)
        else:
            reason = f"{source}: no frame of a video in it (not a video, cut short, or of a kind that OpenCV does not read)"
            with file_errors(source), Path(source).open("rb") as file:
                if not file.read(1):
                    raise Mistake(f"{source}: the file is empty (0 bytes): copy or download it again")
            self.capture = cv2.VideoCapture(_text(source), cv2.CAP_FFMPEG)
            self.capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        read, self.first = self.capture.read()
        if not read:
            raise Mistake(reason)
        rate, count = self.capture.get(cv2.CAP_PROP_FPS), self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate <= 1000 else USUAL_RATE  # NaN is neither
        self.count = int(count) if count > 0 else 0
        self.seconds = 0.0  # of the frames read so far

    def __iter__(self):
        read, frame = True, self.first
        while read:
            self.seconds = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 + 1 / self.rate
            if frame.shape != self.first.shape:  # streams may change their size on the way
                frame = cv2.resize(frame, self.first.shape[1::-1], interpolation=cv2.INTER_AREA)
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            read, frame = self.capture.read()

    def missing(self):
        """After the last frame: the seconds of video that the file states and does not have."""
        stated = self.count / self.rate
        missing = stated - self.seconds
        return missing if missing > min(MISSING[0], MISSING[1] * stated) else 0


@contextmanager
def write_video(path, rate):
    """Yield a function that appends a frame, (H, W, 3) uint8 RGB, all of one size, to an mp4; odd sides get one pixel more.

    The file appears when the block ends. Raises Mistake if it cannot be written, also if the disk was full.
    """
    with write_aside(path) as aside:
        # OpenCV takes the format from the suffix, and FFmpeg what is before a colon in a relative path for a protocol.
        part = aside.absolute().with_name(f"{aside.name}.mp4")
        writer, written = cv2.VideoWriter(), 0

        def append(frame):
            nonlocal written
            h, w = frame.shape[:2]
            frame = cv2.copyMakeBorder(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            if not written and not writer.open(_text(part), cv2.CAP_FFMPEG, code, rate, frame.shape[1::-1]):
                raise UnfitVideo(f"{path}: OpenCV could not start a video of {w} x {h} pixels at {rate:g} frames a second"
                                 + f"; MPEG-4 holds at most {LARGEST} a side" * (max(h, w) > LARGEST))  # fmt: skip
            writer.write(frame)
            written += 1

        try:
            yield append
            writer.release()
            if cv2.VideoCapture(_text(part), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT) < max(written, 1):
                raise Mistake(f"{path}: could not be written whole (is the disk full?); what was there is untouched")
            part.replace(aside)
        finally:
            writer.release()
            part.unlink(missing_ok=True)
