"""A training script as timm's users write it, small: random images, a narrow ResNet, an EMA."""

import argparse
import json
from pathlib import Path

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--lr", type=float, default=1e-4)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--dtype", default="float32")
parser.add_argument("--channels-last", action="store_true")


def main():
    args = parser.parse_args()
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    model = timm.create_model("resnet18", num_classes=10, channels=(16, 32, 64, 128))
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(dtype, memory_format=layout)
    model_ema = ModelEmaV3(model, decay=0.9)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=args.steps)
    loss_fn = LabelSmoothingCrossEntropy()
    random = torch.Generator().manual_seed(1)
    losses = []
    model.train()
    for step in range(args.steps):
        target = torch.randint(10, (8,), generator=random)
        image = torch.randn(8, 3, args.size, args.size, generator=random).to(dtype)
        image[:, 0] += target.view(-1, 1, 1) / 5
        loss = loss_fn(model(image.contiguous(memory_format=layout)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model_ema.update(model, step=step)
        scheduler.step(step + 1)
        losses.append(loss.item())
    checkpoint = {
        "arch": "resnet18",
        "state_dict": model.state_dict(),
        "state_dict_ema": model_ema.module.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, args.out / "last.pth.tar")
    (args.out / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
