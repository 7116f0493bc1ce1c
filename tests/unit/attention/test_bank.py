from dataclasses import dataclass, field

import pytest
import torch
from palimpsest.pipelines.attention import bank as bank_module
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site, attend
from palimpsest.pipelines.attention.own_loop import beside_source
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.schedule import moment_at
from palimpsest.tests.unit.analytic import distance, geometric, picture
from palimpsest.tests.unit.maps import attention

HEADS = 2
SELF, CROSS = Site("self", 0, "cond"), Site("cross", 3, "cond")
AT = [moment_at(geometric(5), step) for step in range(5)]


def qkv(batch, queries=6, keys=5, seed=0):
    """Random [batch, ., 8] queries, keys and values in float64."""
    sizes = (queries, keys, keys)
    return QKV(*(picture(batch, n, 8, seed=seed + i) for i, n in enumerate(sizes)))


class Counting:
    """Fused attention through explicit maps, counting its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, term):
        self.calls += 1
        return attention(term, HEADS)


def rows(term, start, stop):
    return QKV(*(t[start:stop] for t in term))


# -- one attention call with hooks ---------------------------------------------------------------


def test_without_a_term_attention_is_the_hosts_own():
    sdpa, whole = Counting(), qkv(4)
    out = attend(whole, SELF, ["uncond", "cond"], lambda site, part: None, sdpa)
    assert torch.equal(out, attention(whole, HEADS))
    assert sdpa.calls == 1


def test_every_part_is_asked_with_its_own_rows_and_place():
    whole, seen = qkv(6), []
    attend(
        whole,
        Site("cross", 7, "cond", layers=9),
        ["uncond", "cond", "cond"],
        lambda *part: seen.append(part),
        Counting(),
    )
    assert [site for site, _ in seen] == [
        Site("cross", 7, role, tokens=6, layers=9) for role in ("uncond", "cond", "cond")
    ]
    for i, (_, part) in enumerate(seen):
        assert all(map(torch.equal, part, rows(whole, 2 * i, 2 * i + 2)))


def terms_for_cond(*made):
    return lambda site, part: made if site.role == "cond" else None


@pytest.mark.parametrize("keys", [5, 9], ids=["equal keys", "other keys"])
@pytest.mark.parametrize("roles", [["uncond", "cond"], ["cond", "uncond"]])
def test_parts_in_one_call_equal_separate_calls(roles, keys):
    """The sum of terms takes the place of its own part only, whatever its number of keys."""
    whole, first, second = qkv(4), qkv(2, keys=keys, seed=7), qkv(2, keys=3, seed=8)
    out = attend(whole, CROSS, roles, terms_for_cond(first, second), Counting())
    own = roles.index("uncond")
    alone = {
        own: attention(rows(whole, 2 * own, 2 * own + 2), HEADS),
        1 - own: attention(first, HEADS) + attention(second, HEADS),
    }
    assert distance(out, torch.cat([alone[0], alone[1]])) < 1e-14


def test_terms_of_equal_size_share_one_fused_call():
    sdpa = Counting()
    attend(qkv(4), CROSS, ["uncond", "cond"], terms_for_cond(qkv(2, seed=7)), sdpa)
    assert sdpa.calls == 1
    sdpa = Counting()
    hook = terms_for_cond(qkv(2, seed=7), qkv(2, seed=8))
    attend(qkv(4), CROSS, ["uncond", "cond"], hook, sdpa)
    assert sdpa.calls == 2


# -- the bank ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Borrow:
    """A control that takes the source's values at steps below `end`, in cond rows."""

    end: int = 2

    def source_role(self, role):
        return "cond" if role == "cond" else None

    def reads(self, site, at):
        return self.active(at)

    def active(self, at):
        return at.step < self.end

    def kept(self, site, own, at):
        return QKV(None, None, own.v)

    def terms(self, own, source, site, at):
        return source and (QKV(own.q, own.k, source.v),)


def test_the_target_reads_what_the_source_left_at_the_same_place():
    bank = Bank(Borrow(), at=AT[0])
    source = {site: qkv(1, seed=i) for i, site in enumerate((SELF, CROSS))}
    for site, tensors in source.items():
        bank.record(site, tensors)
    for site in source:
        (term,) = bank.inject(site, qkv(1, seed=9))
        assert torch.equal(term.v, source[site].v)


def test_recording_tells_the_host_to_leave_the_source_alone():
    assert Bank(Borrow(), at=AT[0]).record(SELF, qkv(1)) is None


def test_what_no_one_reads_is_not_kept():
    bank = Bank(Borrow(), at=AT[0])
    bank.record(SELF._replace(role="uncond"), qkv(1))
    assert bank.empty
    assert bank.inject(SELF._replace(role="uncond"), qkv(1)) is None
    bank.begin(AT[2])
    bank.record(SELF, qkv(1))
    assert bank.empty
    assert not bank.runs(AT[2])
    assert bank.inject(SELF, qkv(1)) is None


@dataclass(frozen=True)
class Uncond(Borrow):
    """A control whose unconditional rows read the source's conditional ones."""

    def source_role(self, role):
        return "cond" if role == "uncond" else None

    def reads(self, site, at):
        return site.role == "uncond" and self.active(at)


def test_a_control_is_asked_with_the_role_of_the_targets_rows():
    bank, source = Bank(Uncond(), at=AT[0]), qkv(1)
    bank.record(SELF, source)
    (term,) = bank.inject(SELF._replace(role="uncond"), qkv(1, seed=3))
    assert torch.equal(term.v, source.v)
    assert bank.inject(SELF, qkv(1, seed=3)) is None


def test_nothing_is_left_after_the_last_step():
    bank = Bank(Borrow(end=5))
    record = lambda x, sigma: bank.record(SELF, qkv(1))
    with beside_source(bank, record, AT[4], picture()):
        assert bank.inject(SELF, qkv(1))
    assert bank.empty and bank.at is None


def test_a_new_step_forgets_the_last_one():
    bank = Bank(Borrow(), at=AT[0])
    bank.record(SELF, qkv(1))
    assert not bank.empty
    bank.begin(AT[1])
    assert bank.empty
    assert bank.runs(AT[1])
    with pytest.raises(PalimpsestError, match="source did not run"):  # never an old step's tensors
        bank.inject(SELF, qkv(1))


@pytest.mark.parametrize("batch", [1, 3])
def test_one_source_serves_a_batch_of_targets(batch):
    bank = Bank(Borrow(), at=AT[0])
    source = qkv(1)
    bank.record(SELF, source)
    (term,) = bank.inject(SELF, qkv(batch, seed=3))
    assert torch.equal(term.v, source.v.expand(batch, -1, -1))


def test_every_image_of_a_batch_reads_its_own_source():
    bank = Bank(Borrow(), at=AT[0])
    source = qkv(2)
    bank.record(SELF, source)
    (term,) = bank.inject(SELF, qkv(4, seed=3))
    assert torch.equal(term.v, source.v[[0, 0, 1, 1]])


# -- leaving the source's network ----------------------------------------------------------------


@dataclass(frozen=True)
class Up(Borrow):
    """Reads self-attention up to a layer that is lower with every step."""

    def active(self, at):
        return True

    def reads(self, site, at):
        return site.kind == "self" and site.layer <= 3 - at.step


@dataclass
class Layers:
    """A network of four layers, both attentions in each, that tells how far it ran."""

    bank: Bank
    roles: tuple = ("cond",)
    tokens: int = 6
    ran: list = field(default_factory=list)

    def __call__(self, x, sigma):
        self.ran = []
        for layer in range(4):
            for kind in ("self", "cross"):
                for role in self.roles:
                    self.ran.append((kind, layer, role))
                    self.bank.recording.attention(Site(kind, layer, role, self.tokens), qkv(1))
        return x


def filled(bank, network):
    """How many places the source's rows passed in every step."""
    passed = []
    for at in AT[:4]:
        bank.begin(at)
        bank.fill(network, torch.zeros(1))
        passed.append(len(network.ran))
        for layer in range(4 - at.step):
            bank.inject(Site("self", layer, "cond", 6), qkv(1))  # all that is read is there
    return passed


def test_after_a_whole_call_the_source_leaves_its_network_where_nothing_more_is_read():
    bank = Bank(Up())
    assert filled(bank, Layers(bank)) == [8, 5, 3, 1]


def test_it_does_not_leave_before_every_row_has_passed():
    @dataclass(frozen=True)
    class Both(Up):
        def source_role(self, role):
            return role

    bank = Bank(Both())
    assert filled(bank, Layers(bank, roles=("uncond", "cond"))) == [16, 10, 6, 2]


def test_a_network_that_runs_another_way_is_run_to_its_end():
    bank = Bank(Up())
    network = Layers(bank)
    assert filled(bank, network)[0] == 8
    network.tokens = 3
    bank.begin(AT[2])
    bank.fill(network, torch.zeros(1))
    assert len(network.ran) == 8


def test_what_else_goes_wrong_in_the_network_is_not_taken_for_leaving_it():
    bank = Bank(Up())
    bank.begin(AT[0])

    def broken(x, sigma):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bank.fill(broken, torch.zeros(1))


def test_a_step_whose_source_no_row_of_the_target_came_for_was_skipped():
    bank = Bank(Borrow())
    record = lambda x, sigma: bank.record(SELF, qkv(1))
    with beside_source(bank, record, AT[0], picture()):
        bank.inject(CROSS._replace(role="uncond"), qkv(1))  # a row that reads nothing
    with (
        pytest.raises(PalimpsestError, match="Another node skipped the network in a step"),
        beside_source(bank, record, AT[1], picture()),
    ):
        pass
    with beside_source(bank, record, AT[3], picture()):  # the control is idle
        pass


class Kept:
    """Features of the inversion that hold all that is asked for."""

    def serve(self, control, at):
        return True

    def read(self, step):
        return {}


def test_a_step_that_the_inversion_s_features_serve_can_be_skipped_no_less():
    bank = Bank(Borrow(), Kept())
    bank.begin(AT[0])
    with pytest.raises(PalimpsestError, match="Another node skipped the network in a step"):
        bank.begin(None)


def test_a_source_that_others_look_at_is_run_to_its_end():
    bank = Bank(Up(), leaves=False)
    assert filled(bank, Layers(bank)) == [8, 8, 8, 8]


# -- side by side ----------------------------------------------------------------------------------


def paired(bank, x, targets):
    """Begin a step whose source is asked for; how it was run, and where it is to run beside."""
    ran = []
    bank.begin(AT[0])
    bank.fill(lambda x, sigma: ran.append(x), x, targets)
    return ran, bank.beside("cond")


def test_a_source_waits_for_as_many_rows_of_the_target():
    x = picture(2)
    ran, waiting = paired(Bank(Borrow(), pairs=True), x, 2)
    assert ran == [] and waiting == ("cond", x)
    for bank, targets in ((Bank(Borrow(), pairs=True), 4), (Bank(Borrow()), 2)):
        ran, waiting = paired(bank, x, targets)
        assert len(ran) == 1 and ran[0] is x and waiting is None


def test_it_waits_once_and_for_its_own_step_alone():
    bank, x = Bank(Borrow(), pairs=True), picture(1)
    assert paired(bank, x, 1)[1] == ("cond", x) and bank.beside("cond") is None
    bank.begin(AT[0])
    assert bank.beside("cond") is None
    bank.fill(lambda x, sigma: None, x, 1)
    bank.begin(AT[1])
    assert bank.beside("cond") is None


def test_a_row_beside_is_seen_where_it_is_read_and_forgotten_once_it_was():
    bank, source, own = Bank(Borrow(), pairs=True), qkv(1, seed=5), qkv(1)
    paired(bank, picture(1), 1)
    assert bank.inject(SELF._replace(role="source cond"), source) is None
    assert not bank.empty
    beside = bank.inject(SELF, own)
    assert bank.empty
    apart = Bank(Borrow())
    apart.begin(AT[0])
    apart.record(SELF, source)
    expected = apart.inject(SELF, own)
    assert apart.empty
    assert all(torch.equal(*pair) for pair in zip(beside[0][:2], expected[0][:2], strict=True))
    bank.inject(CROSS._replace(role="source cond"), source)
    bank.begin(None)


def test_a_row_beside_takes_no_room(monkeypatch):
    monkeypatch.setattr(bank_module, "BESIDE_ONE", 0)
    bank = Bank(Borrow(), pairs=True)
    paired(bank, picture(1), 1)
    assert bank.inject(SELF._replace(role="source cond"), qkv(1)) is None
    assert bank.inject(SELF, qkv(1)) is not None and bank.empty


def test_a_source_that_waited_in_vain_was_skipped():
    bank = Bank(Borrow(), pairs=True)
    bank.begin(AT[0])
    bank.fill(lambda x, sigma: None, picture(1), 1)
    with pytest.raises(PalimpsestError, match="Another node skipped the network in a step"):
        bank.begin(None)


@pytest.mark.parametrize(
    "read",
    [
        {"cond": "cond"},
        {"uncond": "uncond"},
        {"uncond": "cond"},
        {"cond": "cond", "uncond": "cond"},
        {"cond": "uncond", "uncond": "cond"},
    ],
    ids=str,
)
def test_what_all_that_read_it_have_read_is_dropped(read):
    @dataclass(frozen=True)
    class Reading(Borrow):
        def source_role(self, role):
            return read.get(role)

    bank, left = Bank(Reading()), set(read.values())
    bank.begin(AT[0])
    for role in left:
        bank.record(SELF._replace(role=role), qkv(1))
    readers = [row for role in ("uncond", "cond") if (row := read.get(role))]
    for i, role in enumerate(role for role in ("uncond", "cond") if role in read):
        assert not bank.empty
        bank.inject(SELF._replace(role=role), qkv(1))
        waiting = set(readers[i + 1 :])
        assert {place[2] for place in bank._stored} == waiting
    assert bank.empty


# -- room ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared(Up):
    """Queries and keys of one row of the source, for both branches."""

    def source_role(self, role):
        return "cond"

    def kept(self, site, own, at):
        return QKV(own.q, own.k, None)


def record(bank, step, layers=range(4)):
    """A call of the source in which every layer that is read leaves twice a query."""
    bank.begin(AT[step])
    for layer in layers:
        bank.record(Site("self", layer, "cond", 6), qkv(1, keys=6))


@pytest.mark.parametrize(("room", "apart"), [(8, False), (7.9, True)])
def test_branches_run_apart_where_much_is_kept_for_both(monkeypatch, room, apart):
    monkeypatch.setattr(bank_module, "BESIDE_BOTH", room)
    bank = Bank(Shared())
    assert not bank.injecting.branches_apart
    record(bank, 0)
    assert bank.injecting.branches_apart == apart
    record(bank, 1)  # reads three of the four layers
    assert not bank.injecting.branches_apart
    bank.begin(None if bank.empty else AT[0])
    assert not bank.injecting.branches_apart  # nothing is kept: the source did not run
    others = Bank(Shared(), leaves=False)
    record(others, 0)
    assert not others.injecting.branches_apart


def test_room_is_measured_by_the_largest_query_also_where_it_is_not_read(monkeypatch):
    monkeypatch.setattr(bank_module, "BESIDE_BOTH", 4)
    bank = Bank(Shared())
    record(bank, 0)
    assert bank.injecting.branches_apart
    bank.record(CROSS, qkv(1, queries=12))
    assert not bank.injecting.branches_apart


def test_a_source_that_takes_too_much_room_waits_and_next_time_at_once(monkeypatch):
    monkeypatch.setattr(bank_module, "BESIDE_ONE", 5)
    bank, x, passed = Bank(Shared(), pairs=True), picture(1), []

    def source(x, sigma):
        for layer in range(4):
            passed.append(layer)
            bank.record(Site("self", layer, "cond", 6), qkv(1, keys=6))

    def beside(role):
        for layer in range(4):
            site = Site("self", layer, f"source {role}", 6)
            assert bank.inject(site, qkv(1, keys=6)) is None
            assert bank.inject(site._replace(role=role), qkv(1)) is not None or bank.empty

    for step, ran in ((0, [0, 1, 2]), (1, []), (2, [0, 1, 2, 3]), (3, [0])):
        passed.clear()
        bank.begin(AT[step])
        bank.fill(source, x, 1)
        assert passed == ran and bank.empty == (step < 2)
        for role in ("uncond", "cond"):
            waits = bank.beside(role)
            assert waits == (("cond", x) if step < 2 else None)
            if waits:
                beside(role)
                assert bank.empty
            else:
                bank.inject(Site("self", 0, role, 6), qkv(1))


def test_where_its_rows_are_fewer_than_the_target_s_a_source_keeps_what_it_must(monkeypatch):
    monkeypatch.setattr(bank_module, "BESIDE_ONE", 0)
    bank = Bank(Shared(), pairs=True)
    bank.begin(AT[0])
    bank.fill(lambda x, sigma: record(bank, 0), picture(1), 2)
    assert bank.beside("cond") is None and not bank.empty
