from dataclasses import replace

import pytest
from palimpsest.benchmarks.parity import golden


@pytest.fixture(scope="module", autouse=True)
def one_network():
    """The folders of these tests share a model: it is read once, and never changed."""
    known, read = {}, golden.Folder.unet.func

    def unet(folder):
        if folder.model_path not in known:
            known[folder.model_path] = read(folder)
        return replace(known[folder.model_path], alphas_cumprod=folder.alphas_cumprod)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden.Folder, "unet", property(unet))
        yield


@pytest.fixture
def copy(request, tmp_path):
    """A copy of the cases that a file tests."""
    return request.module.CASES.copy(tmp_path / "copy")
