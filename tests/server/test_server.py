"""The pack in a real server, and the harness that the other server tests stand on."""

import pytest
from palimpsest.dev import PACK
from palimpsest.tests.harness import Failed, Refused


def saved(colour=0xFF0000, **override):
    """A prompt of core nodes that saves one plain picture."""
    empty = {"width": 16, "height": 8, "batch_size": 1, "color": colour, **override}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "tests/plain"},
        },
    }


def test_the_pack_loads_without_a_complaint(server):
    log, _, _ = server.log().partition("got prompt")  # what comes later is the tests' own doing
    assert PACK in log, "the server did not see the pack"
    complaints = [
        line for line in log.splitlines() if PACK in line and ("FAILED" in line or "Error" in line)
    ]
    assert complaints == []


def test_a_prompt_makes_its_picture(server):
    entry = server.run(saved())
    (picture,) = server.images(entry, "2")
    assert picture.size == (16, 8)
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert (server.base / "output" / "tests").is_dir()


def test_the_websocket_tells_of_every_node_and_then_ends(server):
    heard = server.events(saved(0x00FF00))
    kinds = [kind for kind, _ in heard]
    assert kinds[0] == "queued"
    assert kinds[-1] == "execution_success"
    assert {d["node"] for k, d in heard if k == "executing"} >= {"1", "2"}


def test_a_bad_prompt_is_refused_with_the_node_named(server):
    with pytest.raises(Refused) as caught:
        server.queue(saved(width=-1))
    assert list(caught.value.node_errors) == ["1"]


def test_a_failing_node_is_named(server):
    prompt = saved()
    prompt["2"]["inputs"]["filename_prefix"] = "../../climbs"
    with pytest.raises(Failed, match="SaveImage"):
        server.run(prompt)
