"""CIFAR-10 as in section 4.2 of the paper."""

SUMMARY = "the paper's CIFAR-10 recipe"

CONSTANTS = {
    "data": ("cifar10", "section 4.2"),
    "model": ("resnet20", "section 4.2: depths 20, 32, 44, 56, 110 and 1202, shortcut A"),
    "iterations": (64_000, "section 4.2: ends at 64k iterations"),
    "batch_size": (128, "section 4.2"),
    "lr": (0.1, "section 4.2"),
    "lr_batch": (None, "the paper scales no rate"),
    "schedule": ("step", "section 4.2"),
    "milestones": ((32_000, 48_000), "section 4.2: divided by 10 at 32k and 48k iterations"),
    "gamma": (0.1, "section 4.2: divided by 10"),
    "warmup_iterations": (0, "section 4.2: none up to depth 56"),
    "momentum": (0.9, "section 4.2"),
    "weight_decay": (1e-4, "section 4.2"),
    "norm_decay": (True, "the paper makes no exception for batch norm and biases"),
    "label_smoothing": (0.0, "section 4.2: none"),
    "ema_decay": (0.0, "section 4.2: none"),
    "validation": (5_000, "section 4.2: 45k/5k split of the training images"),
    "padding": (4, "section 4.2: 4 pixels on each side, then a 32x32 crop"),
    "flip": (True, "section 4.2: of the padded image or its horizontal flip"),
    "mean": ("pixel", "section 4.2: per-pixel mean subtracted"),
}

# beside the above for depths that do not start at 0.1
DEEP = ("resnet110", "resnet1202", "plain110")
WARM_UP = {
    "warmup_lr": (None, "section 4.2: 0.01, which is what none stands for: a tenth of lr"),
    "warmup_error": (80.0, "section 4.2: until the training error is below 80%"),
}

NOTES = (
    "depth 110 and beyond: warm-up at 0.01 until the training error, over 50 iterations, is below "
    "80%, in the paper about 400 iterations (section 4.2)",
    "initialisation: He et al. 2015; no dropout (section 4.2)",
    "padding comes after the mean is subtracted: it is the mean colour; the paper does not say",
    "tests see the one view of the 32x32 image as it is (section 4.2), after the last iteration",
)
