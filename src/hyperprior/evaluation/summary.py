"""Results as a table on the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from hyperprior.evaluation.evaluate import ImageRecord, means


def results_table(records: Sequence[ImageRecord], title: str) -> Table:
    """A row an image and their means."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", no_wrap=True)
    for heading in ("bytes", "bpp", "PSNR", "MS-SSIM", "(dB)", "enc ms", "dec ms"):
        table.add_column(heading, justify="right", no_wrap=True)

    def row(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
        similar = (f"{values['ms_ssim']:.4f}", f"{values['ms_ssim_db']:.2f}")
        if math.isnan(values["ms_ssim"]):
            similar = ("", "")
        return (
            name, f"{values['bytes']:.0f}", f"{values['bpp']:.3f}", f"{values['psnr_db']:.2f}", *similar,
            f"{values['encode_ms']:.0f}", f"{values['decode_ms']:.0f}",
        )  # fmt: skip

    for record in records:
        table.add_row(*row(record.image, vars(record)))
    table.add_section()
    table.add_row(*row("mean", means(records)), style="bold")
    return table
