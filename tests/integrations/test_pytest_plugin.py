"""The pytest plugin in sessions of its own, on real guests."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import supermachine

from ..vm.conftest import BUSYBOX, ROOT

pytestmark = pytest.mark.vm

#: Installed, the plugin is found by itself; from a source tree it has to be named.
FOUND = any(found.name == "supermachine" for found in entry_points(group="pytest11"))
PLUGIN = [] if FOUND else ["-p", "supermachine.integrations.pytest_plugin"]
#: Serves its argument on port 80, one connection after the other.
SERVE = "echo starting; n=0; while true; do nc -l -p 80 -e sh -c 'cat /srv/answer'; done"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("SUPERMACHINE_CACHE", str(path))


def run(pytester: pytest.Pytester, test: str, *options: str, conftest: str = "") -> pytest.RunResult:
    pytester.makeconftest(f"IMAGE = {str(BUSYBOX)!r}\nSERVE = {SERVE!r}\n{conftest}")
    pytester.makepyfile(
        "import pytest, socket, supermachine, time\nfrom conftest import *\n"
        "from supermachine.integrations.waits import *\n"
        f"IMAGE = {str(BUSYBOX)!r}\n{test}"
    )
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *PLUGIN, *options)


def test_a_vm_for_each_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.supermachine(IMAGE, memory="128m")
@pytest.mark.parametrize("n", range(3))
def test_fresh(vm, n):
    assert not vm.path("/tmp/mine").exists()
    vm.path("/tmp/mine").write_text("x")

def test_none_is_said(vm):
    pass
""",
    )
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*needs @pytest.mark.supermachine(image)*"])


TEMPLATE = """
import pytest, supermachine, pathlib
@pytest.fixture(scope="session")
def vm_template(tmp_path_factory):
    with supermachine.VM(IMAGE, memory="128m") as vm:
        with open("prepared", "a") as file:
            print("once", file=file)
        vm.path("/root/state").write_text("migrated")
        process = vm.popen("while sleep 0.1; do date > /tmp/alive; done", shell=True)
        yield vm
"""
FORKED = """
@pytest.mark.parametrize("n", range(4))
def test_forked(vm, n):
    assert vm.path("/root/state").read_text() == "migrated"
    vm.path("/root/state").write_text("spoilt")
    vm.path("/tmp/alive").unlink(missing_ok=True)
    while not vm.path("/tmp/alive").exists():
        pass
"""


def test_a_template_is_prepared_once_and_forked_for_each_test(pytester: pytest.Pytester) -> None:
    run(pytester, FORKED, conftest=TEMPLATE).assert_outcomes(passed=4)
    assert (pytester.path / "prepared").read_text() == "once\n"


def test_with_xdist_each_process_has_its_own(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    run(pytester, FORKED, "-p", "xdist", "-n", "2", conftest=TEMPLATE).assert_outcomes(passed=4)
    assert (pytester.path / "prepared").read_text() == "once\n" * 2


SERVICE = """
def ask(service):
    # Between one connection and the next nobody listens.
    for _ in range(1000):
        with socket.create_connection(service.address(80), timeout=30) as connection:
            try:
                if answer := connection.makefile("rb").read():
                    return answer
            except ConnectionResetError:
                pass
        time.sleep(0.02)

def prepare(service):
    with open("prepared", "a") as file:
        print("once", file=file)
    service.vm.path("/srv").mkdir(exist_ok=True)
    service.vm.path("/srv/answer").write_text("prepared")

OPTIONS = dict(ports={"80/tcp": None}, memory="128m", setup=prepare)
"""


def test_services_are_ready_fresh_and_prepared_once(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        SERVICE
        + """
@pytest.mark.parametrize("n", range(3))
def test_fresh(service, n):
    conditions = [port(80), log("^starting$"), command(["true"]), command("true")]
    one = service(IMAGE, ["sh", "-c", SERVE], wait=conditions, **OPTIONS)
    assert ask(one) == b"prepared"
    one.vm.path("/srv/answer").write_text("spoilt")
    assert ask(one) == b"spoilt"
    assert one.output == "starting\\n"

def test_two_at_once_and_one_anew(service):
    one, two = (service(IMAGE, ["sh", "-c", SERVE], wait=port(80), **OPTIONS) for _ in range(2))
    three = service(IMAGE, ["sh", "-c", SERVE], wait=lambda s: "starting" in s.output, fresh=True, **OPTIONS)
    assert one.address() != two.address() != three.address()
    assert [ask(s) for s in (one, two)] == [b"prepared"] * 2
    with pytest.raises(ValueError, match="not published"):
        one.address(81)

def test_http(service):
    answer = "HTTP/1.0 200 OK\\\\r\\\\n\\\\r\\\\nhello"
    serve = f"while true; do printf '{answer}' | nc -l -p 80; done"
    one = service(IMAGE, ["sh", "-c", serve], wait=http(80), ports={"80/tcp": None}, memory="128m", fresh=True)
    assert one.url(80, "/x").endswith("/x")

def test_one_that_ends_and_one_that_never_is_ready(service):
    with pytest.raises(supermachine.SupermachineError, match="ended with 3") as caught:
        service(IMAGE, ["sh", "-c", "echo last words; exit 3"], wait=port(80), memory="128m")
    assert "last words" in caught.value.cause
    with pytest.raises(TimeoutError, match="port.number=80. did not hold within 0.5 seconds"):
        service(IMAGE, ["sleep", "1000"], wait=port(80), timeout=0.5, memory="128m")
    with pytest.raises(ValueError, match="has no HEALTHCHECK"):
        service(IMAGE, ["sleep", "1000"], wait=healthy(), memory="128m")
""",
    )
    result.assert_outcomes(passed=6)
    # Each kind once: with the list of conditions, with one, and anew.
    assert (pytester.path / "prepared").read_text() == "once\n" * 3


def test_a_failure_keeps_the_machine_and_tells_what_it_said(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        SERVICE
        + """
@pytest.mark.supermachine(IMAGE, memory="128m", network="none !evil.test")
def test_it(vm, service):
    service(IMAGE, ["sh", "-c", SERVE], wait=port(80), **OPTIONS)
    vm.path("/root/evidence").write_text("found")
    assert False

@pytest.mark.supermachine(IMAGE, memory="128m")
def test_dead(vm):
    vm.kill()
    vm.run(["true"])

@pytest.mark.supermachine(IMAGE, memory="128m")
def test_fine(vm):
    pass
""",
        "--supermachine-keep-on-failure",
    )
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    assert "supermachine: console of vm" in text
    assert "Linux version" in text or "Freeing" in text or "random:" in text
    assert "supermachine: output of service" in text
    assert "starting" in text
    assert "no snapshot was taken" in text  # of the one that was dead
    kept = sorted((pytester.path / "supermachine-failures").iterdir())
    assert len(kept) == 2
    assert all(str(path) in text for path in kept)
    found = []
    for path in kept:
        with supermachine.VM.restore(path) as vm:
            found.append([vm.path(p).exists() for p in ("/root/evidence", "/srv/answer")])
    assert sorted(found) == [[False, True], [True, False]]


def test_denials_are_told(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.supermachine(IMAGE, memory="128m", network="public !127.0.0.0/8")
def test_it(vm):
    vm.run("nc -w 1 10.11.12.13 80", shell=True)
    assert False
""",
    )
    result.assert_outcomes(failed=1)
    assert re.search(r"supermachine: denials of vm.*10\.11\.12\.13:80", result.stdout.str().replace("\n", " "))


def test_the_directory_of_the_snapshots_can_be_chosen(pytester: pytest.Pytester, tmp_path: Path) -> None:
    test = "@pytest.mark.supermachine(IMAGE, memory='128m')\ndef test_it(vm):\n    assert False\n"
    run(pytester, test, f"--supermachine-keep-on-failure={tmp_path / 'kept'}").assert_outcomes(failed=1)
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [
        "test_the_directory_of_the_snapshots_can_be_chosen.py-test_it-1.snapshot"
    ]
    assert not os.path.exists("supermachine-failures")


def test_the_examples_of_the_documentation(pytester: pytest.Pytester) -> None:
    """docs/how-to/pytest.md as one file; the tests before vm_template have a marker and so are none of its forks."""
    text = (ROOT / "docs" / "how-to" / "pytest.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (pytester.path / "demo").symlink_to(ROOT / "demo")
    pytester.makepyfile("\n\n".join(blocks))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *PLUGIN)
    result.assert_outcomes(passed=5)


def test_a_failure_before_the_test_keeps_the_machines(pytester: pytest.Pytester) -> None:
    """In the setup of a fixture, of a service that never is ready, of one whose program is not there."""
    result = run(
        pytester,
        """
@pytest.fixture
def prepared(vm):
    vm.path("/root/evidence").write_text("of a fixture")
    raise ValueError("no")

@pytest.mark.supermachine(IMAGE, memory="128m")
def test_of_a_fixture(prepared):
    pass

@pytest.fixture
def database(service):
    return service(IMAGE, ["sh", "-c", "echo said; echo of a service > /root/evidence; sleep 1000"], wait=log("never"),
                   timeout=3, memory="128m")

def test_of_a_service(database):
    pass

def fails(service):
    service.vm.path("/root/evidence").write_text("of a setup")
    raise ValueError("no")

@pytest.mark.parametrize("fresh", [False, True])
def test_of_a_setup(service, fresh):
    service(IMAGE, ["sleep", "1000"], setup=fails, memory="128m", fresh=fresh)

def test_of_no_program(service):
    service(IMAGE, ["no-such-program"], memory="128m")

def test_not_ready_and_expected(service):
    with pytest.raises(TimeoutError):
        service(IMAGE, ["sleep", "1000"], wait=log("never"), timeout=0.1, memory="128m")
""",
        "--supermachine-keep-on-failure",
    )
    result.assert_outcomes(passed=1, failed=3, errors=2)
    text = result.stdout.str()
    assert "supermachine: console of vm" in text
    assert re.search(r"supermachine: output of service.*\nsaid\n", text)
    kept = sorted((pytester.path / "supermachine-failures").iterdir())
    assert all(str(path) in text for path in kept)
    found = {}
    for path in kept:
        with supermachine.VM.restore(path) as vm:
            evidence = vm.path("/root/evidence")
            found[re.sub(r".*-(test_\w+).*", r"\1", path.name)] = (
                evidence.read_text().strip() if evidence.exists() else ""
            )
    assert found == {
        "test_of_a_fixture": "of a fixture",
        "test_of_a_service": "of a service",
        "test_of_a_setup": "of a setup",
        "test_of_no_program": "",
    }
    assert len(kept) == 5
