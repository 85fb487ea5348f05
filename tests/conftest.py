import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the suite means the same on every machine; GPU checks are tool/benchmark.py's
import cv2
import torch

torch.set_num_threads(2)
cv2.setNumThreads(0)
