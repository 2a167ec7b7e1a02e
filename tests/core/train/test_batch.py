"""Pictures per step, as stated for a process or for the whole job."""

import pytest

from lowbit.errors import InputError
from lowbit.train.batch import of_job, per_node, per_process


def test_a_batch_of_the_job_is_shared_by_processes() -> None:
    plan = of_job(65, 2, accumulate=3)
    assert plan.facts == {"global_batch": 65, "batch_per_process": 33, "accumulate_parts": 3}
    assert plan.remark == "" and plan.option == "--train-batch"


@pytest.mark.parametrize(
    ("wanted", "keep", "facts", "remarked"),
    [
        (None, True, (64, 32, 2), False),
        (64, False, (64, 32, 2), False),
        (256, False, (64, 32, 2), True),
        (256, True, (256, 32, 8), False),
    ],
)
def test_a_batch_of_each_process(wanted: int | None, keep: bool, facts: tuple[int, ...], remarked: bool) -> None:
    plan = per_process(32, 2, accumulate=2, wanted=wanted, keep=keep, options=("--batch", "--whole"))
    assert tuple(plan.facts.values()) == facts
    assert ("--whole=256" in plan.remark and "--batch=32 on 2 process(es)" in plan.remark) == remarked


def test_a_total_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(InputError, match=r"--batch=32 on 2 process\(es\) makes 64 pictures, .*--whole=96 is no multip"):
        per_process(32, 2, wanted=96, keep=True, options=("--batch", "--whole"))


@pytest.mark.parametrize(
    ("world", "local", "facts"), [(8, 4, (512, 64, 2)), (1, 1, (256, 256, 2)), (4, 2, (512, 128, 2))]
)
def test_a_batch_of_a_machine_is_split_over_its_processes(world: int, local: int, facts: tuple[int, ...]) -> None:
    plan = per_node(256, world, local, accumulate=2, option="--batch")
    assert tuple(plan.facts.values()) == facts and (plan.option, plan.remark) == ("--batch", "")


@pytest.mark.parametrize(
    ("pictures", "world", "local", "said"),
    [(256, 8, 3, "not machines of 3 each"), (255, 8, 4, "a multiple of 4"), (0, 4, 4, "a multiple"), (8, 4, 0, "of 0")],
)
def test_a_machines_batch_that_cannot_be_split_is_refused(pictures: int, world: int, local: int, said: str) -> None:
    with pytest.raises(InputError, match=rf"^--batch={pictures} is of a machine.*{said}"):
        per_node(pictures, world, local, option="--batch")
