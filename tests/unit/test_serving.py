"""`trainer serve`: the answers of `predict` over HTTP, limits that are told, figures, and a stop in good order."""

from __future__ import annotations

import dataclasses
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import Commands
from small_run import finetuned_run
from small_task import write_recipe, write_sentiment

from trainer.errors import UserError
from trainer.finetune_config import ClassificationConfig, TaskDataConfig
from trainer.runtime import Runtime
from trainer.task_predict import Predictor
from trainer.tasks.choose import known_task
from trainer.tasks.classification_records import ClassificationReader

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("sklearn")

from trainer.serving.app import Limits, create_app  # noqa: E402
from trainer.serving.requests import RequestError, read_records  # noqa: E402
from trainer.serving.server import bind  # noqa: E402

LIMITS = Limits(max_batch_tokens=256, max_wait_ms=1.0, max_texts=4, max_request_bytes=400, max_waiting_texts=6)


@pytest.fixture(scope="module")
def run_dir(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that classifies texts; nobody may change it."""
    folder = tmp_path_factory.mktemp("served")
    write_sentiment(folder)
    return finetuned_run(write_recipe(folder), runtime, folder / "runs", "train.epochs=4")


@pytest.fixture(scope="module")
def predictor(run_dir: Path) -> Predictor:
    return Predictor.load(run_dir, which="auto")


class Client:
    """Asks one server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def predict(self, inputs: Any) -> tuple[int, dict[str, Any]]:
        status, text = self.ask("POST", "/predict", json.dumps({"inputs": inputs}).encode())
        return status, json.loads(text)

    def detail(self, body: bytes) -> tuple[int, str]:
        status, text = self.ask("POST", "/predict", body)
        return status, json.loads(text)["detail"]


@contextmanager
def served(predictor: Predictor, limits: Limits = LIMITS) -> Iterator[Client]:
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(predictor, limits=limits), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Client(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[Client]:
    with served(predictor) as client:
        yield client


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    scores = pytest.approx(expected["scores"], abs=1e-6)
    return found.keys() == expected.keys() and found["label"] == expected["label"] and found["scores"] == scores


def test_answers_are_those_of_predict_in_the_order_of_the_texts(client: Client, predictor: Predictor) -> None:
    texts = ["the film was awful", "a great night with music", "dull", "fine story"]
    expected = predictor.predict([predictor.reader.from_line(text, where="x") for text in texts])
    status, content = client.predict(texts)
    assert status == 200
    assert content.keys() == {"predictions"}
    assert all(map(same, content["predictions"], expected))
    assert len(content["predictions"]) == 4
    status, content = client.predict(texts[0])
    assert same(content["predictions"][0], expected[0])
    assert len(content["predictions"]) == 1


def test_health_says_what_is_served(client: Client, predictor: Predictor) -> None:
    status, text = client.ask("GET", "/health")
    checkpoint = predictor.checkpoint.name
    assert (status, json.loads(text)) == (
        200,
        {"status": "ok", "run": "tiny", "task": "classification", "checkpoint": checkpoint},
    )


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"", 422, "not JSON ("),
        (b'{"inputs": ', 422, "not JSON ("),
        (b"\xff\xfe", 422, "not JSON ("),
        (b'{"inputs": "\\ud800"}', 422, "not JSON ("),
        (b"[" * 300, 422, "not JSON ("),
        (b'["fine"]', 422, "another form than is known; the body must be {"),
        (b'{"inputs": "fine", "texts": 1}', 422, "another form than is known; "),
        (b'{"inputs": []}', 422, "inputs is empty; "),
        (b'{"inputs": ["fine", 3]}', 422, "inputs[1]: neither a text nor a pair [text, text]"),
        (b'{"inputs": ["fine", ["a"]]}', 422, "inputs[1]: neither a text nor a pair [text, text]"),
        (b'{"inputs": null}', 422, "inputs[0]: neither a text nor a pair [text, text]"),
        (b'{"inputs": ["fine", " "]}', 422, "inputs[1]: the line must be a text that is not empty"),
        (b'{"inputs": "fi\\u0000ne"}', 422, "inputs[0]: a zero byte"),
        (b'{"inputs": [["a", "b"]]}', 422, "inputs[0]: a pair, and this run was trained on single texts; send a text"),
        (b'{"inputs": ["a", "b", "c", "d", "e"]}', 413, "5 inputs, and one request may hold 4; send several requests"),
        (b'{"inputs": "%s"}' % (b"a" * 400), 413, "414 bytes, and one request may hold 400; send several requests"),
    ],
)
def test_a_bad_request_is_told_in_one_line(client: Client, body: bytes, status: int, detail: str) -> None:
    found, text = client.detail(body)
    assert found == status
    assert text.startswith(detail)
    assert "\n" not in text


def test_a_large_body_is_read_to_its_end_before_it_is_refused(client: Client) -> None:
    assert client.detail(b"x" * 20_000_000) == (
        413,
        "20000000 bytes, and one request may hold 400; send several requests",
    )


def test_other_paths_and_methods_are_refused(client: Client) -> None:
    assert client.ask("GET", "/predict")[0] == 405
    assert client.ask("POST", "/elsewhere", b"{}")[0] == 404


def test_pairs_are_read_as_predict_reads_them() -> None:
    data = TaskDataConfig(train="t", validation="v")
    reader = ClassificationReader(ClassificationConfig(pair="second"), data)
    body = json.dumps({"inputs": [["one ", "two"], "three\tfour"]}).encode()
    records = read_records(body, reader=reader, max_texts=2)
    assert [record.inputs for record in records] == [("one", "two"), ("three", "four")]
    for inputs, message in ((["a\tb", "c"], "a text of a pair holds a tab"), ("a", "the line must be two texts")):
        with pytest.raises(RequestError, match=rf"^inputs\[0\]: {message}") as found:
            read_records(json.dumps({"inputs": [inputs]}).encode(), reader=reader, max_texts=2)
        assert found.value.status == 422


def test_a_text_longer_than_the_recipe_allows_is_refused_where_it_says_so(predictor: Predictor) -> None:
    data = predictor.config.data.model_copy(update={"overlong": "refuse"})
    config = predictor.config.model_copy(update={"data": data})
    strict = dataclasses.replace(predictor, config=config, task=known_task(config, predictor.task.labels))
    with served(strict) as client:
        status, content = client.predict("fine " * 60)
    assert status == 422
    assert content["detail"].startswith("inputs[0]: ")
    assert "longer than data.max_length=32" in content["detail"]


def test_the_figures_count_requests_by_status_batches_and_waiting_texts(predictor: Predictor) -> None:
    with served(predictor) as client:
        client.predict(["fine", "a dull film"])
        client.predict([])
        status, text = client.ask("GET", "/metrics")
    assert status == 200
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert figures['bertline_requests_total{status="200"}'] == "1.0"
    assert figures['bertline_requests_total{status="422"}'] == "1.0"
    assert figures["bertline_request_seconds_count"] == "2.0"
    assert (figures["bertline_batch_sequences_count"], figures["bertline_batch_sequences_sum"]) == ("1.0", "2.0")
    records = [predictor.reader.from_line(text, where="x") for text in ("fine", "a dull film")]
    tokens = sum(map(len, predictor.task.examples(records, predictor.tokenizer)))
    assert float(figures["bertline_batch_tokens_sum"]) == tokens
    assert figures["bertline_waiting_texts"] == "0.0"


class Gate:
    """A predict step that waits to be let through."""

    def __init__(self, step: Callable[[Any], Any]) -> None:
        self.step, self.open, self.entered = step, threading.Event(), threading.Event()

    def __call__(self, batch: Any) -> Any:
        self.entered.set()
        assert self.open.wait(20)
        return self.step(batch)


def test_more_than_may_wait_is_put_off_and_a_stop_answers_what_was_taken_on(predictor: Predictor) -> None:
    gate = Gate(predictor.step)
    answers: list[tuple[int, dict[str, Any]]] = []
    with ExitStack() as stack:
        client = stack.enter_context(served(dataclasses.replace(predictor, step=gate)))
        asking = threading.Thread(target=lambda: answers.append(client.predict(["fine"] * 4)))
        asking.start()
        assert gate.entered.wait(20)
        assert client.predict(["dull"] * 3) == (503, {"detail": "4 texts wait already; try again later"})
        threading.Timer(0.3, gate.open.set).start()
    asking.join()
    assert answers[0][0] == 200
    assert len(answers[0][1]["predictions"]) == 4


def test_a_fault_of_the_model_is_a_500_without_its_traceback(predictor: Predictor) -> None:
    def broken(batch: Any) -> Any:
        raise RuntimeError("secret")

    with served(dataclasses.replace(predictor, step=broken)) as client:
        status, text = client.ask("POST", "/predict", b'{"inputs": "fine"}')
        assert (status, text) == (500, "Internal Server Error")
        assert 'bertline_requests_total{status="500"} 1.0' in client.ask("GET", "/metrics")[1]


def test_an_address_that_cannot_be_had_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot serve on 127\.0\.0\.1:{port} \(Address already in use\); choose"):
            bind("127.0.0.1", port)
    with pytest.raises(
        UserError, match=r"cannot serve on 203\.0\.113\.1:0 \(Cannot assign requested address\); choose"
    ):
        bind("203.0.113.1", 0)


def test_the_command_serves_until_it_is_told_to_stop(commands: Commands, run_dir: Path, tmp_path: Path) -> None:
    number = commands.start("serve", run_dir, "--port", 0, cwd=tmp_path)
    try:
        while "\n" not in (said := commands.said(number)):
            time.sleep(0.05)
        address, where = said.split(" on ")
        assert address == str(Predictor.load(run_dir, which="auto").checkpoint)
        client = Client(int(where.strip().removeprefix("http://127.0.0.1:")))
        for _ in range(200):
            try:
                assert client.predict("a great film")[0] == 200
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
    finally:
        commands.tell(number, signal.SIGTERM)
    done = commands.wait(number)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-texts", "0"], "argument --max-texts: '0' must be a whole number from 1 on"),
        (["--port", "70000"], "argument --port: '70000' must be a whole number from 0 to 65535"),
        (["--max-wait-ms", "-1"], "argument --max-wait-ms: '-1' must be a number of milliseconds from 0 to 60000"),
    ],
)
def test_a_limit_that_is_none_is_refused(
    arguments: list[str], message: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(run_dir), *arguments])
    assert message in capsys.readouterr().err


def test_runs_of_another_kind_and_missing_packages_are_named(
    tiny_run: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.__main__ import main

    assert main(["serve", str(tiny_run)]) == 2
    assert capsys.readouterr().err == (f"error: {tiny_run} is a pretraining run; this needs one made by `finetune`\n")
    monkeypatch.setattr("trainer.commands.serve.find_spec", lambda name: None)
    assert main(["serve", str(run_dir)]) == 2
    assert capsys.readouterr().err == ("error: serving needs the package fastapi; pip install 'bertline[serve]'\n")
