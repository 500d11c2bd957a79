"""`crosscoding serve`: what it says about models, addresses and a missing extra."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from command_line import run

NEEDS = "needs the extra: pip install 'crosscoding[serve]'"


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run("serve", "mnist-2d")
    assert done.exit_code == 2
    assert "pip install 'crosscoding[serve]'" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("mnist-3d",), "did you mean 'mnist-2d'"),
        (("mnist-2d", "mnist-2d"), "models of different names"),
        (("mnist-2d", "--token", ""), "a token that is not empty"),
        (("mnist-2d", "--host", "192.0.2.1"), "an address to listen on, got 192.0.2.1 port 8000"),
        (("mnist-2d", "--host", "no.such.host.invalid"), "an address to listen on"),
    ],
)
def test_errors_are_one_sentence(words, said):
    pytest.importorskip("fastapi", reason=NEEDS)
    done = run("serve", *words)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_a_port_that_is_taken():
    pytest.importorskip("fastapi", reason=NEEDS)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "mnist-2d", "--port", taken.getsockname()[1])
    assert done.exit_code == 2
    assert "choose another with --host or --port" in " ".join(done.output.split())


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(tmp_path):
    pytest.importorskip("fastapi", reason=NEEDS)
    command = [sys.executable, "-m", "crosscoding", "serve", "mnist-2d", "--port", "0"]
    env = os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert server.stdout is not None
    try:
        said = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert address is not None, said
        with urllib.request.urlopen(f"{address[0]}v1/models") as response:
            assert [model["name"] for model in json.load(response)] == ["mnist-2d"]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
        server.stdout.close()
