"""ImageNet with what has been found since the paper; every constant with where it is from."""

SUMMARY = "ImageNet with label smoothing, cosine, linear warm-up and an averaged network"

_BAG = "He et al. 2019 (arXiv 1812.01187)"
_GOYAL = "Goyal et al. 2017 (arXiv 1706.02677)"

CONSTANTS = {
    "data": ("imagefolder", "a folder per class under train/ and val/"),
    "model": ("resnet50", "any ImageNet network"),
    "epochs": (120, f"{_BAG}, section 2.1"),
    "batch_size": (256, "section 3.4; with a larger one lr grows, see lr_batch"),
    "lr": (0.1, f"section 3.4; {_BAG}, section 2.1"),
    "lr_batch": (256, f"{_GOYAL}, section 2.1: lr is for 256 images and grows with the batch"),
    "schedule": ("cosine", f"{_BAG}, section 5.1"),
    "warmup": ("linear", f"{_GOYAL}, section 2.2"),
    "warmup_epochs": (5, f"{_GOYAL}, section 2.2; {_BAG}, section 3.1"),
    "momentum": (0.9, "section 3.4"),
    "weight_decay": (1e-4, "section 3.4"),
    "norm_decay": (False, f"{_BAG}, section 3.1: no decay of biases and batch norm"),
    "label_smoothing": (0.1, f"Szegedy et al. 2016 (arXiv 1512.00567), section 7; {_BAG}, 5.2"),
    "ema_decay": (0.9999, "Szegedy et al. 2016, section 8, evaluates a running average"),
    "ema_every": (1, "after every step"),
    "image_size": (224, "section 3.4"),
    "crop": ("area", "Szegedy et al. 2015 (arXiv 1409.4842), section 6: 8% to 100% of the area"),
    "flip": (True, "section 3.4"),
    "mean": ("channel", "ImageNet's channel means and deviations, as torchvision's weights have"),
    "color": ("none", "left out here; --color alexnet adds the paper's"),
}

NOTES = (
    "the averaged network starts anew as a copy when the warm-up ends; epochs.csv has both "
    "networks' errors, best.pt is chosen by the averaged one's",
    "mixed precision is an option beside it: --amp bf16",
)
