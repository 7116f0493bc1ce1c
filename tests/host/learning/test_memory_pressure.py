"""What free memory there is changes how core batches rows, and nothing else."""

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.tests.host.edits.test_edit import relative
from palimpsest.tests.host.edits.test_sde import BATCHED, dragged, dragging


@pytest.mark.parametrize("short_at", [range(1000), range(5, 6)], ids=["always", "once"])
def test_a_drag_under_memory_pressure_is_the_same_but_for_rounding(
    sd1_folder, monkeypatch, short_at
):
    """Where memory is short core runs prompt and negative apart, in batches of another size."""
    loaded, calls, rows = load_folder(sd1_folder), [], []
    network = loaded.model.model.diffusion_model
    hook = network.register_forward_pre_hook(lambda _network, args: rows.append(len(args[0])))
    with torch.inference_mode():
        plain = dragged(dragging(loaded))[0].latent
        calm = len(rows)
        free = ModelPatcher.get_free_memory

        def short(self, device):
            calls.append(device)
            return 0 if len(calls) in short_at else free(self, device)

        monkeypatch.setattr(ModelPatcher, "get_free_memory", short)
        pressed = dragged(dragging(loaded))[0].latent
        monkeypatch.undo()
        again = dragged(dragging(loaded))[0].latent
    hook.remove()
    assert len(rows) > 3 * calm  # it did run in more calls
    assert relative(pressed, plain) < BATCHED
    assert torch.equal(again, plain)
