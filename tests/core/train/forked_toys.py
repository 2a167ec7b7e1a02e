"""What a fork of the server does for the tests of the loop: a toy run by its settings (`work`), or another `call`."""

import copy
import functools
import importlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
import torch
from timm.layers import BatchNormAct2d
from toy_objectives import stages

import lowbit.evaluate.monitor
import lowbit.export.packed
import lowbit.loading  # noqa: F401 (imported once for all)
from lowbit.checkpoint.read import newest_good
from lowbit.checkpoint.write import write_checkpoint
from lowbit.data.batch import Batch
from lowbit.data.loader import Loader
from lowbit.data.pictures import FolderPictures, MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train
from lowbit.errors import EXIT_FAULT, EXIT_INPUT, EXIT_STOPPED, InputError, Stopped
from lowbit.train import job, signals
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.bn_statistics import reestimate_batchnorm_
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result, Run, fit
from lowbit.train.process import finish, first_to_say, make_accelerator, on_main, stop_agreed
from lowbit.train.protocol import Clock, Objective
from lowbit.train.session import Session

PICTURES, CLASSES = 101, 4


def pictures(folder: str | None) -> MemoryPictures | FolderPictures:
    """101 pictures of 8 x 8 pixels: in memory, or the same as files."""
    images = torch.randint(0, 256, (PICTURES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(PICTURES) % CLASSES
    names = [str(c) for c in range(CLASSES)]
    if folder is None:
        return MemoryPictures("toy", names, images, labels)
    paths = [Path(folder) / f"{i}.png" for i in range(PICTURES)]
    if not paths[-1].exists():
        from PIL import Image

        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return FolderPictures("toy", names, paths, labels)


def arm(settings: Mapping[str, Any], kind: type[Objective]) -> None:
    """Let the run do something to itself after the batch number `at` (batches before it are those done)."""
    at, what = settings["at"], settings["do"]
    original = kind.after_batch

    def after_batch(objective: Objective, clock: Clock, carries: Any) -> None:
        original(objective, clock, carries)
        if settings.get("slow"):
            time.sleep(settings["slow"])
        if clock.done + 1 == at:
            if what == "mark":
                Path(settings["mark"]).touch()
            elif clock.rank in settings.get("ranks", [0]):
                os.kill(os.getpid(), getattr(signal, what))

    kind.after_batch = after_batch  # type: ignore[method-assign]


def limit_files(s: Mapping[str, Any]) -> None:
    """As on a full disk, writing more than `largest_file` bytes fails, for real."""
    if "largest_file" in s:
        resource.setrlimit(resource.RLIMIT_FSIZE, (s["largest_file"], s["largest_file"]))


def work(s: Mapping[str, Any]) -> None:
    """One process of one run."""
    accelerator = make_accelerator("no", cpu=True)
    dtype = getattr(torch, s.get("dtype", "float64"))
    plan = stages(s["toy"], s.get("bn", False), s.get("dropout", 0.0), dtype, s.get("teacher", 0))
    if s.get("channels_last"):
        for stage in plan:
            stage.objective.to(memory_format=torch.channels_last)
    if "do" in s:
        for kind in {type(stage.objective) for stage in plan}:
            arm(s, kind)
    loader = Loader(
        pictures(s.get("files")),
        cifar_train(CIFAR10, 8, 1),
        global_batch=12,
        seed=s.get("seed", 3),
        n_views=plan[0].objective.n_views,
        workers=s.get("workers", 0),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        dtype=dtype,
    )
    path = Path(s["folder"])
    limit_files(s)
    folder = RunFolder(path, locked=False)
    found = newest_good(path) if s.get("resume") else None

    def open_folder() -> None:
        nonlocal folder
        folder = RunFolder.open(path, {"toy": s["toy"]}, resume=bool(s.get("resume")))

    on_main(accelerator, open_folder)

    def probe(clock: Clock, objective: Objective) -> dict[str, float]:
        objective.eval()
        for step in range(20 if s.get("slow_probe") else 1):
            if s.get("slow_probe"):
                time.sleep(0.1)
            if step == 2 and "mark_probe" in s and accelerator.is_main_process:
                Path(s["mark_probe"]).touch()
            if stop_agreed(accelerator):
                raise Stopped("inside a probe")
        return {"size": sum(float(p.detach().abs().sum()) for p in objective.parameters())}

    run = Run(
        accelerator=accelerator,
        folder=folder,
        seed=s.get("seed", 3),
        max_steps=s.get("max_steps"),
        save_every=s.get("save_every"),
        accumulate=s.get("accumulate", 1),
        clip_grad=s.get("clip_grad"),
        log_every=4,
        resume=None if found is None else found[1],
        probes=[probe],
        header={"format": 1, "package": "toy", "arch": s["toy"]},
        prefixes={"trunk.": "module."},
        best="size",
    )
    try:
        result = fit(plan, loader, run)
    except Stopped:
        finish(accelerator)
        raise
    on_main(accelerator, lambda: folder.write_result({"finished": result.finished, "done": result.done}))
    torch.save(plan[-1].objective.state_dict(), path / f"rank{accelerator.process_index}.pt")
    folder.close()
    finish(accelerator)


def command(s: Mapping[str, Any]) -> None:
    """The console script of the package in a folder; each process leaves what it holds at the end in rank*.pt."""
    sys.path.insert(0, s["package"])
    cli, objective = (importlib.import_module(f"{s['name']}.{module}") for module in ("cli", "objective"))
    if "do" in s:
        arm(s, objective.Rotation)
    if "dtype" in s:
        partial = functools.partialmethod(Session.__init__, dtype=getattr(torch, s["dtype"]))
        Session.__init__ = partial  # type: ignore[assignment]

    def keep_weights(stages: Any, loader: Any, run: Run) -> Result:
        result = fit(stages, loader, run)
        if run.folder is not None:
            weights = stages[-1].objective.state_dict()
            torch.save(weights, run.folder.path / f"rank{run.accelerator.process_index}.pt")
        return result

    job.fit = keep_weights
    sys.argv = [s["name"], *s["args"]]
    cli.cli.script()


def save_until_killed(s: Mapping[str, Any]) -> None:
    """Write a checkpoint and die before line number `at` of `lowbit.checkpoint.write` and `lowbit.files`."""
    lines = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("lowbit/checkpoint/write.py", "lowbit/files.py")):
            return None
        if event == "line":
            if lines == s.get("at"):
                os.kill(os.getpid(), signal.SIGKILL)
            lines += 1
        return trace

    limit_files(s)
    sys.settrace(trace)
    write_checkpoint(Path(s["file"]), {"step": s.get("step"), "w": torch.zeros(s.get("numbers", 1000))})
    sys.settrace(None)


def check_sync_bn(s: Mapping[str, Any]) -> None:
    """On ranks with different numbers of pictures: values, first and second derivatives of one process with all."""
    accelerator = make_accelerator("no", cpu=True)
    rank, generator = accelerator.process_index, torch.Generator().manual_seed(0)
    whole = torch.randn(7, 5, 3, 3, dtype=torch.float64, generator=generator) * 2 + 1
    mine = slice(0, 2) if rank == 0 else slice(2, 7)
    one = BatchNormAct2d(5, act_layer=torch.nn.Softplus, drop_layer=torch.nn.Identity).double()
    torch.nn.init.uniform_(one.weight, generator=generator)
    several = sync_batchnorm_(torch.nn.Sequential(copy.deepcopy(one)))
    assert list(several.state_dict()) == [f"0.{name}" for name in one.state_dict()]

    def derivatives(net: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = net(x)
        first = torch.autograd.grad((y**3).sum(), [x, *net.parameters()], create_graph=True)
        second = torch.autograd.grad((first[0] ** 2).sum(), [x, *net.parameters()])
        return [y, *first, *second]

    expected, found = derivatives(one, whole), derivatives(several, whole[mine])
    for name, a, b in zip(("y", "dx", "dw", "db", "ddx", "ddw", "ddb"), expected, found, strict=True):
        b = b.detach().clone()
        if a.shape[0] == len(whole):
            a = a[mine]
        else:
            torch.distributed.all_reduce(b)  # parameters: each rank has its share of the sum
        assert torch.allclose(a, b, rtol=0, atol=1e-10 * max(1, a.abs().max().item())), (name, (a - b).abs().max())
    for name, buffer in one.named_buffers():
        assert torch.allclose(buffer.double(), several.get_buffer(f"0.{name}").double(), rtol=0, atol=1e-12), name
    several.eval(), one.eval()
    assert torch.allclose(one(whole), several(whole), rtol=0, atol=1e-12)

    net = sync_batchnorm_(torch.nn.Sequential(torch.nn.BatchNorm2d(5).double()))
    reestimate_batchnorm_(
        net, [Batch((whole[mine],), torch.arange(7)[mine]), Batch((whole[mine] + 1,), torch.arange(7)[mine])]
    )
    assert torch.allclose(net[0].running_mean, whole.mean((0, 2, 3)) + 0.5, atol=1e-12)
    finish(accelerator)


def say(_: Mapping[str, Any]) -> None:
    """Which ranks are the first to say what all of them say, and what each says alone."""
    accelerator = make_accelerator("no", cpu=True)
    print(first_to_say("all"), first_to_say(f"rank {accelerator.process_index}"), first_to_say("all"))
    finish(accelerator)
    print(first_to_say("all"))


def child(settings: Mapping[str, Any]) -> int:
    """What a command's `main` does with the ends of a run; returns the exit code."""
    if settings.get("call") == "command":
        command(settings)
        return 0
    os.setpgid(0, 0) if os.environ.get("RANK", "0") == "0" else None
    signals.install()
    logging.basicConfig(level=logging.INFO)
    try:
        {"run": work, "save": save_until_killed, "bn": check_sync_bn, "say": say}[settings.get("call", "run")](settings)
    except Stopped as stop:
        print(f"Stopped: {stop}")
        return EXIT_STOPPED
    except InputError as error:
        print(f"InputError: {error}")
        return EXIT_INPUT
    except BaseException:
        logging.exception("a fault")
        return EXIT_FAULT
    return 0
