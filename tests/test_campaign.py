"""Faults by the hundred: `sh tool/check.sh -m campaign`. Other tests hold what it has found."""

import random
import subprocess
import sys

import pytest

from util.config import ROOT


@pytest.mark.campaign
def test_every_planted_fault_ends_in_a_run_or_in_one_message():
    seed = random.SystemRandom().randrange(10**6)
    command = [sys.executable, ROOT / "tests/campaign.py", "--seconds", "900", "--seed", str(seed)]
    found = subprocess.run([*map(str, command)], capture_output=True, text=True)
    print(found.stdout[-20000:], found.stderr[-2000:])
    assert found.returncode == 0
