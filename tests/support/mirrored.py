"""Whether a device's copy of a store says what the host's pages say, array by array."""

import numpy as np
import torch

from penstock.retrieval.device.values import of_blocks, of_rows
from penstock.retrieval.store.page import NEVER


def differences(store):
    """What the mirror's arenas hold otherwise than the pages: names of arrays, by page. Rows that are free, and zone
    maps of blocks without rows, may hold anything, but for births and counts."""
    rows = store._rows
    table, mirror = rows.table, store._device.mirror
    assert table.arenas is mirror.arenas
    arenas, wrong = table.arenas, []
    assert arenas.layout.dense == (table.pages[0].dense.shape[1] if table.pages else arenas.layout.dense)
    for number, (page, zones) in enumerate(zip(table.pages, table.zones, strict=True)):
        born = np.flatnonzero(page.birth != NEVER)
        births = arenas.view(number, "birth").cpu().numpy()
        if (births != page.birth).any():
            wrong.append((number, "birth"))
        wanted = {"death": page.death[born], **of_rows(page, born, arenas.layout)}
        for name, values in wanted.items():
            found = arenas.view(number, name).cpu()
            if name == "sketch":
                found = found.permute(0, 2, 1).reshape(page.rows, -1)
            elif arenas.layout.arrays[name].parts > 1:
                found = found.T
            found = found.view(torch.int16) if name == "dense" else found
            wrong += _unequal(number, name, found.numpy()[born], values)
        wrong += _unequal(number, "zone.rows", arenas.view(number, "zone.rows").cpu().numpy(), zones.rows)
        held = np.flatnonzero(zones.rows)
        for name, values in of_blocks(page, zones, held).items():
            found = arenas.view(number, name).cpu()
            found = found.T if arenas.layout.arrays[name].parts > 1 else found
            wrong += _unequal(number, name, found.numpy()[held], values)
        norms = page.norms[born]
        assert not len(born) or (mirror.norms >= norms.max(0)).all()
    return wrong


def _unequal(number, name, found, wanted):
    return [] if np.array_equal(found, wanted, equal_nan=found.dtype.kind == "f") else [(number, name)]
