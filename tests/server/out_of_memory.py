"""A node of the tests: the model, out of memory at one of its calls."""

import torch
from comfy.patcher_extension import WrappersMP


class OutOfMemory:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "at": ("INT", {"default": 1})}}

    def patch(self, model, at):
        calls = []

        def fail(executor, *args, **options):
            calls.append(1)
            if len(calls) == at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return executor(*args, **options)

        model = model.clone()
        model.add_wrapper(WrappersMP.DIFFUSION_MODEL, fail)
        return (model,)


NODE_CLASS_MAPPINGS = {"TestOutOfMemory": OutOfMemory}
