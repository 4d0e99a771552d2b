"""What training loops do to a network, done to a fused one and to the same one unfused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from interop.networks import (
    CLOSE,
    LIBRARIES,
    assert_close,
    assert_same_step,
    double,
    fused_path,
    images,
    small,
    twins,
)
from interop.works_with import works_with
from torch import Tensor, nn

import fastres


def both(plain: nn.Module, fused: nn.Module, loop: Callable[[nn.Module], object]) -> None:
    """Run the same loop with both; all they hold must be the same afterwards."""
    torch.manual_seed(1)
    expected = loop(plain)
    torch.manual_seed(1)
    with fused_path():
        found = loop(fused)
    if expected is not None:
        torch.testing.assert_close(found, expected, **CLOSE)
    assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-6, atol=1e-8)


def loss_of(model: nn.Module, seed: int) -> Tensor:
    x = images(dtype=torch.float64, seed=seed)
    return nn.functional.cross_entropy(model(x), torch.arange(4))


# precision and layout


def error(exact: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """Relative error of all tensors together."""
    exact, found = (
        torch.cat([t.double().flatten() for t in tensors.values()]) for tensors in (exact, found)
    )
    return ((found - exact).norm() / exact.norm()).item()


LAYOUTS = {
    "as they are": (torch.contiguous_format, torch.contiguous_format),
    "images channels_last": (torch.contiguous_format, torch.channels_last),
    "all channels_last": (torch.channels_last, torch.channels_last),
}


def amp_step(model: nn.Module, x: Tensor, dtype: torch.dtype | None, scaled: bool) -> dict:
    """Output, gradients and parameters of one step under autocast, with a GradScaler."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**8)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        out = model(x)
        loss = nn.functional.cross_entropy(out.float() if dtype else out, torch.arange(len(x)) % 10)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    found = {"out": out.detach()}
    found |= {name: p.grad for name, p in model.named_parameters()}
    nn.utils.clip_grad_norm_(model.parameters(), 1e3)
    scaler.step(optimizer)
    scaler.update()
    if scaled:
        assert scaler.get_scale() == 2.0**8, "the step was skipped"
    return found | {f"buffer {name}": buffer for name, buffer in model.named_buffers()}


@works_with("autocast in bf16; in fp16 with a `GradScaler`; `channels_last` or not")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("library", "layout"),
    [*(("torchvision", layout) for layout in LAYOUTS), ("timm", "as they are")],
)
def test_autocast(library, dtype, layout):
    plain, fused = twins(lambda: small(library))
    exact = copy.deepcopy(plain).double()
    of_model, of_images = LAYOUTS[layout]
    x = images(16, size=32)
    wanted = amp_step(exact, x.double(), None, False)
    found = []
    for model in (plain, fused):
        model.to(memory_format=of_model)
        scaled = dtype == torch.float16
        given = x.contiguous(memory_format=of_images)
        with fused_path() if model is fused else nullcontext():
            found.append(amp_step(model, given, dtype, scaled))
    theirs, ours = found
    assert ours["out"].dtype == theirs["out"].dtype == dtype
    for part in ("out", "grad", "buffer"):
        names = [n for n in wanted if part in n] if part != "grad" else plain_names(plain)
        of_both = [
            error({n: wanted[n] for n in names}, {n: run[n] for n in names})
            for run in (theirs, ours)
        ]
        # ours keeps more in fp32: it may only be nearer, but for a ReLU that decides otherwise
        assert of_both[1] <= 1.5 * of_both[0] + 1e-6, (part, of_both)


def plain_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@works_with("`model.to(memory_format=torch.channels_last)`, before and after fusing")
@pytest.mark.parametrize("library", LIBRARIES)
def test_channels_last(library):
    plain, fused = double(library)
    x = images(dtype=torch.float64)
    for model in (plain, fused):
        model.to(memory_format=torch.channels_last)
    assert fused.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert_same_step(plain, fused, x.contiguous(memory_format=layout))
    fastres.unfuse(fused)
    assert_same_step(plain, fastres.fuse(fused), x)


# loops


@works_with("gradient accumulation and gradient clipping")
def test_accumulation():
    def loop(model: nn.Module) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for step in range(4):
            (loss_of(model, step) / 2).backward()
            if step % 2:
                norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return norm

    both(*double(), loop)


@works_with("optimiser groups by parameter name")
@pytest.mark.parametrize("library", LIBRARIES)
def test_parameter_groups(library):
    def loop(model: nn.Module) -> None:
        groups: dict[str, list[Tensor]] = {"no decay": [], "downsample": [], "rest": []}
        for name, p in model.named_parameters():
            kind = "no decay" if p.ndim == 1 else "downsample" if "downsample" in name else "rest"
            groups[kind].append(p)
        assert [len(group) for group in groups.values()] == [41, 4, 16 + 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": groups["no decay"], "weight_decay": 0.0},
                {"params": groups["downsample"], "lr": 1e-4},
                {"params": groups["rest"]},
            ],
            lr=1e-3,
            eps=1e-3,  # Adam divides by gradients that are all rounding otherwise
        )
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()

    both(*double(library), loop)


@works_with("optimiser groups by the class of the module, as torchvision's `set_weight_decay`")
@pytest.mark.parametrize("library", LIBRARIES)
def test_parameter_groups_by_class(library):
    def groups(model: nn.Module) -> tuple[list[str], list[str]]:
        norms, others = [], []
        for prefix, module in model.named_modules():
            kind = norms if isinstance(module, nn.modules.batchnorm._BatchNorm) else others
            kind += [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]
        return norms, others

    plain, fused = double(library)
    assert groups(fused) == groups(plain)
    assert len(groups(fused)[0]) == 2 * 20


@works_with("frozen layers: `requires_grad_(False)` and their BN in `eval()`")
@pytest.mark.parametrize("library", LIBRARIES)
def test_freezing(library):
    def loop(model: nn.Module) -> None:
        frozen = [model.conv1, model.bn1, model.layer1, model.layer2[0].conv2, model.layer3[0].bn2]
        for part in frozen:
            part.requires_grad_(False)
            for module in part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        before = {name: p.clone() for name, p in model.layer1.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
        for part in frozen:
            assert all(p.grad is None for p in part.parameters())
        assert_close(model.layer1.state_dict(), before, rtol=0, atol=0)
        # thawed again, in the middle of training
        model.requires_grad_(True).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        loss_of(model, 2).backward()
        optimizer.step()
        assert all(p.grad is not None for p in model.parameters())

    both(*double(library), loop)


@works_with("`train()` and `eval()` in turn, `torch.no_grad` and `torch.inference_mode`")
@pytest.mark.parametrize("library", LIBRARIES)
def test_train_and_eval(library):
    def loop(model: nn.Module) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        seen = []
        for step in range(2):
            model.train()
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                seen.append(model(images(dtype=torch.float64, seed=9)))
            with torch.inference_mode():
                seen.append(model(images(dtype=torch.float64, seed=9)).clone())
            # gradients in eval mode, as for saliency maps
            x = images(dtype=torch.float64).requires_grad_()
            seen.append(torch.autograd.grad(model(x).square().sum(), x)[0])
        return torch.cat([one.flatten() for one in seen])

    both(*double(library), loop)


@works_with("`AveragedModel` (EMA, SWA) and `update_bn`")
def test_averaged_model():
    def loop(model: nn.Module) -> dict[str, Tensor]:
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        assert type(average.module) is type(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
            average.update_parameters(model)
        loader = [images(dtype=torch.float64, seed=seed) for seed in (5, 6, 7)]
        torch.optim.swa_utils.update_bn(loader, average)
        assert average.module.bn1.num_batches_tracked == 3
        assert average.module.bn1.momentum == 0.1
        return average.state_dict()

    both(*double(), loop)


# state_dicts


@works_with("`state_dict` and `load_state_dict` hooks, `strict=False`, `assign=True`, `torch.save`")
@pytest.mark.parametrize("library", LIBRARIES)
def test_state_dicts_with_hooks(library):
    plain, fused = double(library)
    seen: list[str] = []

    def renamed(module, state, prefix, metadata) -> None:
        for key in list(state):
            state[key.replace("layer", "stage")] = state.pop(key)

    def named_back(module, state, prefix, *_) -> None:
        seen.append("pre")
        for key in list(state):
            state[key.replace("stage", "layer")] = state.pop(key)

    for model in (plain, fused):
        model.register_state_dict_post_hook(renamed)
        model.layer2[0].register_state_dict_pre_hook(lambda *_: seen.append("block"))
        model.register_load_state_dict_pre_hook(named_back)
        model.register_load_state_dict_post_hook(lambda *_: seen.append("post"))
    for p in plain.parameters():
        p.data.mul_(1.1)
    for source, target in ((plain, fused), (fused, plain)):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        state = torch.load(file)
        assert any(key.startswith("stage2") for key in state)
        target.load_state_dict(state)
        assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert seen.count("pre") == seen.count("post") == 2
    assert seen.count("block") >= 2

    state = plain.state_dict()
    state.pop("fc.weight")
    state["extra"] = torch.zeros(1)
    found = fused.load_state_dict(state, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["fc.weight"], ["extra"])
    with pytest.raises(RuntimeError, match=r"Missing key.*fc\.weight"):
        fused.load_state_dict(state)

    state = {key: value.clone() for key, value in plain.state_dict().items()}
    fused.load_state_dict(state, assign=True)
    assert fused.conv1.weight.data_ptr() == state["conv1.weight"].data_ptr()
    assert_same_step(plain, fused, images(dtype=torch.float64))


# Lightning and accelerate


class Lightly:
    """What the test below trains with Lightning; made where lightning is imported."""

    @staticmethod
    def module(lightning, model: nn.Module) -> nn.Module:
        class Lit(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def training_step(self, batch, index):
                return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

        return Lit()


def batches() -> torch.utils.data.DataLoader:
    data = torch.utils.data.TensorDataset(
        images(8, size=64, dtype=torch.float64), torch.arange(8) % 10
    )
    return torch.utils.data.DataLoader(data, batch_size=4)


@works_with("Lightning's `Trainer`")
@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    def loop(model: nn.Module) -> None:
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, precision="64-true",
            enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Lightly.module(lightning, model), batches())

    both(*double(), loop)


@works_with("accelerate's `Accelerator`")
@pytest.mark.filterwarnings("ignore")  # accelerate's own
def test_accelerate():
    accelerate = pytest.importorskip("accelerate")

    def loop(model: nn.Module) -> None:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        model, optimizer, loader = accelerator.prepare(model, optimizer, batches())
        for x, target in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), target))
                optimizer.step()
                optimizer.zero_grad()

    both(*double(), loop)
