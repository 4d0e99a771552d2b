"""ImageNet as in section 3.4 of the paper."""

SUMMARY = "the paper's ImageNet recipe"

CONSTANTS = {
    "data": ("imagefolder", "a folder per class under train/ and val/"),
    "model": ("resnet50", "section 4.1; one recipe for every depth"),
    "iterations": (600_000, "section 3.4: up to 60e4 iterations"),
    "batch_size": (256, "section 3.4"),
    "lr": (0.1, "section 3.4"),
    "lr_batch": (None, "the paper scales no rate"),
    "schedule": ("plateau", "section 3.4: divided by 10 when the error plateaus"),
    "gamma": (0.1, "section 3.4: divided by 10"),
    "patience": (5, "epochs without a better validation error; the paper names no number"),
    "warmup_iterations": (0, "section 3.4: none"),
    "momentum": (0.9, "section 3.4"),
    "weight_decay": (1e-4, "section 3.4"),
    "norm_decay": (True, "the paper makes no exception for batch norm and biases"),
    "label_smoothing": (0.0, "section 3.4: none"),
    "ema_decay": (0.0, "section 3.4: none"),
    "image_size": (224, "section 3.4: 224x224 crops"),
    "crop": ("side", "section 3.4: scale augmentation by the shorter side"),
    "shorter_side": ((256, 480), "section 3.4: drawn from [256, 480]"),
    "flip": (True, "section 3.4: crops of an image or its horizontal flip"),
    "mean": ("pixel", "section 3.4: per-pixel mean subtracted; `fastres data mean` computes it"),
    "color": ("alexnet", "section 3.4: the standard colour augmentation (AlexNet, section 4.1)"),
    "color_std": (0.1, "AlexNet, section 4.1"),
}

NOTES = (
    "initialisation: He et al. 2015 (section 3.4); no dropout (section 3.4)",
    "the deviation is not divided by: the paper subtracts a mean only (section 3.4)",
    "during training: one centre crop with the shorter side at 256; the paper's 10-crop and "
    "multi-scale tests (section 3.4) are `fastres eval`'s",
)
