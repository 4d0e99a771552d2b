"""scikit-learn's digits, for the demo; the schedule is tuned for it, the rest is CIFAR-10's."""

SUMMARY = "handwritten digits, minutes on a CPU"

CONSTANTS = {
    "data": ("digits", "1797 images of scikit-learn, 32x32"),
    "model": ("resnet20", "section 4.2"),
    "epochs": (20, "tuned"),
    "batch_size": (64, "tuned"),
    "lr": (0.1, "section 4.2"),
    "schedule": ("step", "section 4.2"),
    "milestones": ((12, 17), "tuned; epochs"),
    "gamma": (0.1, "section 4.2: divided by 10"),
    "momentum": (0.9, "section 4.2"),
    "weight_decay": (1e-4, "section 4.2"),
}

NOTES = ("4 pixels of padding and a crop as in section 4.2, but no flip, which makes other glyphs",)
