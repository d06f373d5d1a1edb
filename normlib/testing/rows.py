"""Checks of which rows a result depends on: in inference, in training, under a mask."""

import numpy as np

from normlib.testing.gradients import check_gradients_of
from normlib.testing.subject import (
    Subject,
    close,
    expect,
    expect_raises,
    fingerprint,
    same_bits,
)


def check_inference(subject: Subject) -> None:
    """Inference changes no state, treats rows apart, and is forward's y if per_sample."""
    norm = subject.trained()
    x = subject.rows(5)
    before = fingerprint(norm, x)
    y = norm(x)
    expect(fingerprint(norm, x) == before, "inference must not change the state; it did")
    expect(
        same_bits(norm(x[1:2])[0], y[1]),
        "in inference a row's result must not depend on the other rows; it does. A normalizer that "
        "works by batch statistics keeps running ones for inference",
    )
    if norm.per_sample:
        expect(
            close(norm.forward(x)[0], y),
            "with per_sample = True, inference and forward must give the same y; they differ",
        )


def check_declared_traits(subject: Subject) -> None:
    """per_sample says whether, in training, a row's result depends on the other rows."""
    for dtype in ("float32", "float64"):
        norm = subject.trained(dtype)
        x, dy = subject.rows(5, dtype=dtype), subject.rows(5, dtype=dtype, seed=3)
        y, cache = norm.forward(x)
        if not norm.per_sample:
            changed = x.copy()
            changed[2:] = subject.rows(3, dtype=dtype, seed=4)
            expect(
                not np.array_equal(norm.forward(changed)[0][:2], y[:2]),
                "with per_sample = False a row's y must depend on the other rows, and does not. "
                "Declare per_sample = True",
            )
            continue
        expect(
            norm.min_rows == 0,
            f"with per_sample = True, min_rows must be 0; got {norm.min_rows}",
        )
        dx, _ = norm.backward(dy, cache)
        for rows in (slice(3, None), slice(None, None, -1), slice(1, 2)):
            y_part, cache = norm.forward(x[rows])
            dx_part, _ = norm.backward(dy[rows], cache)
            for name, part, whole in (("y", y_part, y), ("dx", dx_part, dx)):
                expect(
                    same_bits(part, whole[rows]),
                    f"with per_sample = True the bits of a row's {name} must not depend on the "
                    "batch; they do. Declare per_sample = False, or sum along the last axis of a "
                    "contiguous array",
                )


def check_mask(subject: Subject) -> None:
    """Masked rows do not enter the statistics, and are normalized by them all the same."""
    mask = np.array([[True, False, True], [True, True, False]])
    x = subject.rows(2, 3)
    # Each masked row equals one that counts, of the same sample.
    x[0, 1], x[1, 2] = x[0, 0], x[1, 0]
    norm, plain = subject.trained(), subject.trained()
    y, _ = norm.forward(x, mask=mask)
    expect(
        close(y[~mask], y[:, 0]),
        "a masked row must be normalized like the others; one equal to a row that counts came out "
        "different",
    )
    full, _ = plain.forward(x, mask=np.ones_like(mask))
    expect(
        close(full, subject.trained().forward(x)[0]),
        "a mask that is True everywhere must give the result without a mask",
    )
    if norm.per_sample:
        expect(close(y, full), "with per_sample = True a mask must not change y; it does")
        return
    other = subject.trained()
    x[~mask] = 100.0
    y_other, _ = other.forward(x, mask=mask)
    expect(
        close(y_other[mask], y[mask]),
        "values in masked rows must not change the y of rows that count; they do. Leave rows where "
        "mask is False out of the statistics",
    )
    probe = subject.rows(2)
    expect(
        fingerprint(other, probe) == fingerprint(norm, probe),
        "values in masked rows must not enter the running statistics; they do",
    )


def check_few_rows(subject: Subject) -> None:
    """Method forward works from min_rows rows on, and forward_frozen for any number."""
    norm = subject.trained()
    probe = subject.rows(3)
    norm.forward(subject.rows(norm.min_rows))
    if norm.min_rows == 0:
        return
    expect_raises(
        ValueError,
        lambda: norm.forward(subject.rows(norm.min_rows - 1)),
        f"forward of {norm.min_rows - 1} rows, with min_rows = {norm.min_rows},",
    )
    expect_raises(
        ValueError,
        lambda: norm.forward(probe, mask=np.arange(3) < norm.min_rows - 1),
        f"forward with {norm.min_rows - 1} rows that count, with min_rows = {norm.min_rows},",
    )
    before = fingerprint(norm, probe)
    x, dy = subject.rows(1), subject.rows(1, seed=3)
    y, cache = norm.forward_frozen(x)
    expect(fingerprint(norm, probe) == before, "forward_frozen must not change the state; it did")
    expect(close(y, norm(x)), "forward_frozen must give the y of inference; it does not")
    dx, _ = norm.backward(dy, cache)
    norm.forward(subject.rows(6, seed=5))
    expect(
        same_bits(norm.backward(dy, cache)[0], dx),
        "later calls of forward must not change what backward makes of an earlier cache; they do. "
        "Copy the running statistics into the cache",
    )
    check_gradients_of(norm, norm.forward_frozen, x, ", after forward_frozen,")
