"""`ssql draw`: a map of training features at given bits, by t-SNE, coloured by class.

As in the authors' program 5,100 training pictures are shown (51 batches of 100) and the classifier is left out; here
they are drawn class-balanced by a fixed seed, shown as evaluation shows them, and written to `features.png` and
`features.csv` in the run's folder (theirs: one fixed name in the working folder). Any dataset will do.
"""

import time
from pathlib import Path

import torch

from lowbit.config.tree import dump_config
from lowbit.data.pictures import balanced_subset
from lowbit.data.views import side_of
from lowbit.errors import InputError
from lowbit.evaluate.feature_map import check_count, write_map
from lowbit.evaluate.features import extract
from lowbit.options import RunOptions
from lowbit.train.configured import dataset_of, refuse
from lowbit.train.process import on_main
from lowbit.train.session import Session
from ssql.bitwidths import Bits
from ssql.commands import FILES
from ssql.config import Config
from ssql.evaluation import QuantizedBackbone, open_pretrained
from ssql.pictures import transforms_of

PICTURES = 51 * 100


def draw(options: RunOptions, config: Config, name: str) -> None:
    """Write the map of `MODEL.PRETRAINED` at QUANT.W.BIT and QUANT.A.BIT; --limit-train replaces their 5,100 pictures.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came.
    """
    start = time.perf_counter()
    config.check_stated("MODEL.PRETRAINED", "TRAIN.DATASET")
    refuse({"MODEL.CHECKPOINT": options.resume}, "in draw, which starts from the beginning each time")
    path, bits = Path(config.MODEL.PRETRAINED), Bits("", config.QUANT.W.BIT, config.QUANT.A.BIT)
    with Session("ssql", options, dataset_of(config.TRAIN), [path], resumes=False, files=FILES) as session:
        train = session.pictures("train")
        if len(train) > PICTURES and options.limit_train is None:
            train = train.subset(balanced_subset(train.labels, PICTURES))
        check_count(len(train))
        side = side_of(train, config.MODEL.side)
        backbone = open_pretrained(path, config.MODEL.ARCH or None, (3, side, side))
        shown = transforms_of(config, train, side)[1]
        quantized = QuantizedBackbone(session, backbone, config.QUANT, train, shown)
        facts = {"arch": backbone.arch, "pictures": len(train), "w_bits": bits.w, "a_bits": bits.a}
        if options.dry_run:
            session.say_facts(facts)
            return
        with quantized.at(bits):
            found = extract(quantized.net, session.eval_loader(train, shown), session.accelerator)
        if not bool(torch.isfinite(found.x).all()):
            raise InputError(
                f"the features of {path} at {bits.w}/{bits.a} bits hold NaN or infinity: name another checkpoint, or "
                "leave out --mixed-precision"
            )
        with session.open_folder("draw", {"config_name": name, "config": dump_config(config)}, facts) as folder:
            assert folder is not None  # --output has a default
            on_main(session.accelerator, lambda: write_map(found, train, options.seed, folder.path))
            session.write_result(folder, {**facts, "seconds": time.perf_counter() - start})
