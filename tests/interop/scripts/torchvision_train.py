"""A training script as torchvision's references have it, small: random images, a narrow ResNet."""

import argparse
import json
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset


class RandomImages(Dataset):
    def __init__(self, count, size, dtype):
        random = torch.Generator().manual_seed(1)
        self.labels = torch.randint(10, (count,), generator=random)
        self.images = torch.randn(count, 3, size, size, generator=random).to(dtype)
        self.images[:, 0] += self.labels.view(-1, 1, 1) / 5

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--channels-last", action="store_true")
    return parser.parse_args(argv)


def main(args):
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    model = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck,
        [1, 1, 1, 1],
        num_classes=10,
        width_per_group=16,
        zero_init_residual=True,
    )
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(dtype, memory_format=layout)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    loader = DataLoader(
        RandomImages(8 * args.steps, args.size, dtype),
        batch_size=8,
        shuffle=True,
        generator=torch.Generator().manual_seed(2),
        num_workers=args.workers,
        multiprocessing_context="spawn" if args.workers else None,
    )
    losses = []
    model.train()
    for image, target in loader:
        output = model(image.contiguous(memory_format=layout))
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, args.out / "checkpoint.pth")
    (args.out / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(parse())
