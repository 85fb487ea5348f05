"""A training and test script in the manner of the original's, which uses this project as a library: its imports, its calls and
their order, and nothing newer."""

import random

import cv2
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from model.pspnet import PSPNet
from util import config, dataset, transform
from util.util import (
    AverageMeter,
    check_makedirs,
    colorize,
    find_free_port,
    intersectionAndUnion,
    intersectionAndUnionGPU,
    poly_learning_rate,
)

YAML = """
DATA:
  data_root: {root}
  train_list: {root}/list/train.txt
  val_list: {root}/list/val.txt
  classes: 9
TRAIN:
  arch: psp
  layers: 18
  sync_bn: True
  train_h: 33
  train_w: 33
  scale_min: 0.5
  scale_max: 2.0
  rotate_min: -10
  rotate_max: 10
  zoom_factor: 8
  ignore_label: 255
  aux_weight: 0.4
  batch_size: 4
  base_lr: 0.01
  epochs: 10
  power: 0.9
  momentum: 0.9
  weight_decay: 0.0001
  my_own_key: 5
"""


def train(args, device):
    criterion = nn.CrossEntropyLoss(ignore_index=args.ignore_label)
    model = PSPNet(
        layers=args.layers, classes=args.classes, zoom_factor=args.zoom_factor, criterion=criterion, pretrained=False
    )
    modules_ori = [model.layer0, model.layer1, model.layer2, model.layer3, model.layer4]
    modules_new = [model.ppm, model.cls, model.aux]
    params = [{"params": module.parameters(), "lr": args.base_lr} for module in modules_ori]
    params += [{"params": module.parameters(), "lr": args.base_lr * 10} for module in modules_new]
    optimizer = torch.optim.SGD(params, lr=args.base_lr, momentum=args.momentum, weight_decay=args.weight_decay)
    model = model.to(device)

    mean, std = [255 * value for value in (0.485, 0.456, 0.406)], [255 * value for value in (0.229, 0.224, 0.225)]
    train_transform = transform.Compose([
        transform.RandScale([args.scale_min, args.scale_max]),
        transform.RandRotate([args.rotate_min, args.rotate_max], padding=mean, ignore_label=args.ignore_label),
        transform.RandomGaussianBlur(),
        transform.RandomHorizontalFlip(),
        transform.Crop([args.train_h, args.train_w], crop_type="rand", padding=mean, ignore_label=args.ignore_label),
        transform.ToTensor(),
        transform.Normalize(mean=mean, std=std),
    ])  # fmt: skip
    train_data = dataset.SemData("train", args.data_root, args.train_list, transform=train_transform)
    loader = torch.utils.data.DataLoader(train_data, batch_size=args.batch_size, shuffle=True, num_workers=0, drop_last=True)

    losses = []
    max_iter = args.epochs * len(loader)
    for epoch in range(args.epochs):
        model.train()
        loss_meter, intersection_meter, union_meter = AverageMeter(), AverageMeter(), AverageMeter()
        for i, (image, target) in enumerate(loader):
            if args.zoom_factor != 8:
                h, w = ((side - 1) // 8 * args.zoom_factor + 1 for side in target.shape[1:])
                target = (
                    F.interpolate(target.unsqueeze(1).float(), (h, w), mode="bilinear", align_corners=True).squeeze(1).long()
                )
            image, target = image.to(device), target.to(device)
            output, main_loss, aux_loss = model(image, target)
            loss = torch.mean(main_loss) + args.aux_weight * torch.mean(aux_loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            intersection, union, _ = intersectionAndUnionGPU(output, target, args.classes, args.ignore_label)
            intersection_meter.update(intersection.cpu().numpy())
            union_meter.update(union.cpu().numpy())
            loss_meter.update(loss.item(), image.size(0))
            current_lr = poly_learning_rate(args.base_lr, epoch * len(loader) + i + 1, max_iter, power=args.power)
            for index, group in enumerate(optimizer.param_groups):
                group["lr"] = current_lr * (10 if index > 4 else 1)
        losses.append(loss_meter.avg)
        assert 0 <= np.mean(intersection_meter.sum / (union_meter.sum + 1e-10)) <= 1
    check_makedirs(args.save_path)
    state = {"epoch": args.epochs, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, f"{args.save_path}/train_epoch_{args.epochs}.pth")
    return losses


def test(args, device):
    model = PSPNet(layers=args.layers, classes=args.classes, zoom_factor=args.zoom_factor, pretrained=False).to(device)
    state = torch.load(f"{args.save_path}/train_epoch_{args.epochs}.pth", weights_only=True)["state_dict"]
    model.load_state_dict(state, strict=False)
    model.eval()
    val_transform = transform.Compose([transform.ToTensor(), transform.Normalize(mean=[128.0] * 3, std=[64.0] * 3)])
    val_data = dataset.SemData("val", args.data_root, args.val_list, transform=val_transform)
    intersection_meter, union_meter, target_meter = AverageMeter(), AverageMeter(), AverageMeter()
    for image, target in torch.utils.data.DataLoader(val_data, batch_size=1):
        with torch.no_grad():
            output = model(F.pad(image, (0, 65 - image.size(3), 0, 49 - image.size(2))))
        output = F.interpolate(output, (49, 65), mode="bilinear", align_corners=True)[:, :, : image.size(2), : image.size(3)]
        gray = output.max(1)[1][0].numpy().astype(np.uint8)
        intersection, union, areas = intersectionAndUnion(gray, target[0].numpy(), args.classes)
        intersection_meter.update(intersection)
        union_meter.update(union)
        target_meter.update(areas)
    cv2.imwrite(f"{args.save_path}/gray.png", gray)
    colorize(gray, np.zeros((args.classes, 3), np.uint8)).save(f"{args.save_path}/color.png")
    return sum(intersection_meter.sum) / (sum(target_meter.sum) + 1e-10)


@pytest.mark.parametrize("zoom_factor", [8, 1])
def test_a_script_in_the_manner_of_the_original_trains_and_tests(toy, tmp_path, narrow, zoom_factor):
    (tmp_path / "toy.yaml").write_text(YAML.format(root=toy))
    args = config.load_cfg_from_cfg_file(str(tmp_path / "toy.yaml"))
    args = config.merge_cfg_from_list(args, ["epochs", "6", "zoom_factor", str(zoom_factor)])
    args.save_path = str(tmp_path / "exp/model")
    assert args.my_own_key == 5 and args.epochs == 6 and 0 < find_free_port() < 65536
    random.seed(0)
    torch.manual_seed(0)
    losses = train(args, torch.device("cpu"))
    assert losses[-1] < 0.9 * losses[0]
    assert test(args, torch.device("cpu")) > 1 / 9
    assert (tmp_path / "exp/model/color.png").is_file()


test.__test__ = False  # the original's name for it
