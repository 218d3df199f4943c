import errno
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bezoar_utils.calls.budget import Budget, BudgetReached, cost_usd
from bezoar_utils.study import files

ROOT = Path(__file__).resolve().parent.parent


def test_a_price_is_per_million_tokens_of_prompt_and_of_reply():
    assert cost_usd((2.0, 10.0), 1_000_000, 0) == 2.0
    assert cost_usd([2.0, 10.0], 500, 100) == pytest.approx(0.002)


def test_what_is_settled_replaces_what_was_reserved(tmp_path):
    budget = Budget(tmp_path / "spend.jsonl", 1.0)
    ticket = budget.reserve(0.8)
    assert budget.spent() == (0.0, 0.8)
    budget.settle(ticket, 0.1)
    assert budget.spent() == (0.1, 0.0)


def test_a_refused_reservation_takes_nothing_and_names_the_budget_and_how_to_go_on(tmp_path):
    budget = Budget(tmp_path / "spend.jsonl", 1.0)
    budget.settle(budget.reserve(0.25), 0.25)
    budget.reserve(0.5)
    with pytest.raises(BudgetReached, match=r"1\.0000 USD.*0\.2500 spent.*0\.5000 reserved.*money\.budget_usd") as error:
        budget.reserve(0.3)
    assert "\n" not in str(error.value) and budget.spent() == (0.25, 0.5)


def test_the_last_cent_can_be_spent_whatever_floats_add_up_to(tmp_path):
    budget = Budget(tmp_path / "spend.jsonl", 1.0)
    for _ in range(10):
        budget.reserve(0.1)
    with pytest.raises(BudgetReached):
        budget.reserve(0.001)


def test_a_reservation_of_a_dead_process_stays_counted(tmp_path):
    path = tmp_path / "spend.jsonl"
    code = "import os, sys; from pathlib import Path; from bezoar_utils.calls.budget import Budget; "
    code += "p = Budget(Path(sys.argv[1]), 1.0); p.settle(p.reserve(0.2), 0.2); p.reserve(0.7); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, path], cwd=ROOT).returncode == -9
    budget = Budget(path, 1.0)
    assert budget.spent() == (0.2, 0.7)
    with pytest.raises(BudgetReached):
        budget.reserve(0.2)


def test_two_budgets_of_one_ledger_see_what_the_other_reserves_and_settles(tmp_path):
    first, second = Budget(tmp_path / "spend.jsonl", 1.0), Budget(tmp_path / "spend.jsonl", 1.0)
    ticket = first.reserve(0.6)
    with pytest.raises(BudgetReached):
        second.reserve(0.6)
    first.settle(ticket, 0.0)
    second.reserve(0.6)
    with pytest.raises(BudgetReached):
        first.reserve(0.6)


def test_a_torn_last_line_is_no_error_and_takes_no_other_row_with_it(tmp_path):
    path = tmp_path / "spend.jsonl"
    Budget(path, 1.0).reserve(0.4)
    with open(path, "ab") as file:
        file.write(b'{"id": "torn", "reserv')
    budget = Budget(path, 1.0)
    assert budget.spent() == (0.0, 0.4)
    budget.reserve(0.5)
    assert budget.spent() == Budget(path, 1.0).spent() == (0.0, 0.9)


def test_many_at_once_never_reserve_more_than_the_budget(tmp_path):
    path = tmp_path / "spend.jsonl"
    budgets = [Budget(path, 1.0), Budget(path, 1.0)]

    def try_to_reserve(number: int) -> bool:
        try:
            budgets[number % 2].reserve(0.03)
        except BudgetReached:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        granted = sum(pool.map(try_to_reserve, range(100)))
    assert granted == 33
    assert sum(json.loads(line)["reserved_usd"] for line in path.read_text().splitlines()) <= 1.0


def test_processes_side_by_side_share_one_budget(tmp_path):
    path = tmp_path / "spend.jsonl"
    code = "import sys; from pathlib import Path; from bezoar_utils.calls.budget import Budget\n"
    code += "budget = Budget(Path(sys.argv[1]), 1.0)\nfor _ in range(60): budget.reserve(0.03)"
    running = [subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert all(process.wait() == 1 for process in running)
    assert Budget(path, 1.0).spent() == (0.0, pytest.approx(0.99))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_where_the_file_system_has_no_locks_the_budget_still_counts_and_that_is_said_once(tmp_path, monkeypatch, capsys, number):
    def refused(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", refused)
    budget = Budget(tmp_path / "spend.jsonl", 1.0)
    budget.settle(budget.reserve(0.5), 0.25)
    assert budget.spent() == (0.25, 0.0) and capsys.readouterr().err.count("no locks") == 1
    with pytest.raises(BudgetReached):
        budget.reserve(0.8)
