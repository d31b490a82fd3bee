"""`python -m cluster` without hosts: what a dry run prints, and each mistake in one line with nothing started."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.check import run_check
from cluster.job import describe_job
from cluster.profile import PROFILES_DIR, load_profile
from trainer.recipe import load_recipe

RECIPE = """\
name: small
data:
  shards: my shards
  max_seq_len: 32
train:
  steps: 4
  global_batch_size: 16
  micro_batch_size: 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # Nothing is found, so nothing can be started.
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before = sorted(Path.cwd().rglob("*"))
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before, "something was written"
    return shown.err


def hosts(text: str) -> tuple[str, str]:
    Path("hosts").write_text(text)
    return ("--hostfile", "hosts")


def test_a_local_run_is_deepspeeds_launcher_with_a_port_of_the_runs_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = shlex.split(dry_run(capsys, "local", "recipe.yaml", "--procs", "4", "--set", "seed=3"))
    assert argv[:4] == [sys.executable, "-m", "deepspeed.launcher.runner", "--master_port"]
    assert 20_000 <= int(argv[4]) < 32_000
    trainer = ["trainer", "pretrain", str(folder / "recipe.yaml"), "--set", "seed=3"]
    options = ["--hostfile", "/dev/null", "--num_gpus", "4", "--module", "--no_local_rank"]
    assert argv[5:] == [*options, *trainer]
    other = shlex.split(dry_run(capsys, "local", "recipe.yaml", "--procs", "4", "--set", "name=other"))
    assert other[4] != argv[4]


def test_a_named_recipe_stays_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(capsys, "local", "demo", "--procs", "2").endswith(" trainer pretrain demo\n")


def test_deepspeed_over_ssh_shows_its_file_of_variables_and_escapes_for_the_remote_shell(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("site.yaml").write_text('environment: {NCCL_DEBUG: INFO, SHOWN: "a $HOME \\"b\\""}')
    wrong = 'data.shards=$(touch x); `y` "z"'
    text = dry_run(
        capsys, "deepspeed", "recipe.yaml", *hosts("a slots=2\nb slots=2\n"), "--profile", "site.yaml", "--set", wrong,
        "--set", "name=x", "--set", "runs_dir=$HOME"
    )  # fmt: skip
    assert f'# {folder}/$HOME/x/deepspeed_env:\nNCCL_DEBUG=INFO\nSHOWN=a \\$HOME \\"b\\"\n' in text
    assert f"export DS_ENV_FILE='{folder}/$HOME/x/deepspeed_env'\n" in text
    argv = shlex.split(text.splitlines()[-1])
    assert argv[argv.index("--hostfile") + 1] == str(folder / "hosts")
    assert argv[argv.index("--master_addr") + 1] == "a"
    # DeepSpeed puts double quotes around those with blanks and escapes double quotes in them.
    assert 'data.shards=\\$(touch x); \\`y\\` "z"' in argv
    assert "'runs_dir=$HOME'" in argv
    assert not (folder / "$HOME").exists()


def test_mpirun_gets_variables_and_apptainer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.yaml").write_text(
        "environment: {NCCL_DEBUG: INFO}\npython: python3\n"
        "container: {runtime: apptainer, image: my image.sif, mounts: ['/data:/data']}\n"
    )
    text = dry_run(capsys, "mpi", "recipe.yaml", *hosts("a slots=3\nb slots=3\n"), "-n", "4", "--profile", "site.yaml")
    environment, command = text.splitlines()
    assert environment == "export NCCL_DEBUG=INFO"
    argv = shlex.split(command)
    assert argv[:7] == ["mpirun", "-n", "4", "--hostfile", str(folder / "hosts"), "--map-by", "slot"]
    assert argv[7:13] == ["--bind-to", "none", "--wdir", str(folder), "-x", "NCCL_DEBUG"]
    binds = ["--bind", f"{folder}:{folder}", "--bind", "/data:/data"]
    assert argv[13:] == [
        *("apptainer", "exec", "--nv", *binds, "--pwd", str(folder), "my image.sif"),
        *("python3", "-m", "trainer", "pretrain", str(folder / "recipe.yaml")),
    ]


SLURM = ("slurm", "recipe.yaml", "--nodes", "2", "--gpus-per-node", "4", "--time", "1:00:00")


def test_the_whole_batch_script_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.yaml").write_text(
        "partition: big\naccount: me\nqos: high\ncpus_per_task: 3\nsbatch: [--exclusive]\nmodules: [cuda/12, a b]\n"
        "environment: {NCCL_DEBUG: 'a b'}\nscratch: /scratch\npython: /py\ngrace_s: 90\n"
    )
    text = dry_run(capsys, *SLURM, "--profile", "site.yaml")
    scratch = text.partition("mkdir -p ")[2].partition("/shards-")[2][:12]
    assert (
        text
        == f"""\
# {folder}/runs/small/job.sbatch:
#!/bin/bash
#SBATCH --job-name=small
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=3
#SBATCH --time=1:00:00
#SBATCH --partition=big
#SBATCH --account=me
#SBATCH --qos=high
#SBATCH --signal=USR2@90
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --exclusive

trap : TERM USR2
module load cuda/12 'a b' || exit 2
export NCCL_DEBUG='a b'
export OMP_NUM_THREADS=3
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
logs={folder}/runs/small/logs/"$SLURM_JOB_ID"
mkdir -p "$logs" || exit 2
srun --nodes=2 --ntasks=2 --ntasks-per-node=1 mkdir -p /scratch/shards-{scratch} || exit 2
srun --nodes=2 --ntasks=2 --ntasks-per-node=1 cp -Ru '{folder}/my shards/.' /scratch/shards-{scratch} || exit 2

/py -u -m cluster preflight {folder}/recipe.yaml --slurm --procs 4 --profile {folder}/site.yaml \
--set data.shards=/scratch/shards-{scratch} || exit 2
srun --nodes=2 --ntasks-per-node=4 --cpus-per-task=3 --cpu-bind=cores --gpu-bind=none --wait=60 --open-mode=append \
--output={folder}/runs/small/logs/"$SLURM_JOB_ID"/rank-%t.log \\
  /py -u -m trainer pretrain {folder}/recipe.yaml --set data.shards=/scratch/shards-{scratch}
code=$?
if [ "$code" -eq 75 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%t)" = R ]; \
then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"

sbatch --parsable --chdir {folder} --output {folder}/runs/small/logs/batch-%j.log {folder}/runs/small/job.sbatch
"""
    )


def test_shards_on_the_network_are_cached_on_scratch_and_not_copied(capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.yaml").write_text("scratch: /scratch\n")
    text = dry_run(capsys, *SLURM, "--profile", "site.yaml", "--set", "data.shards=s3://bucket/shards")
    assert text.count(" --set data.cache.folder=/scratch/small") == 2
    settings = ["data.shards=s3://bucket/shards", "data.cache.folder=/scratch/small"]
    cache = load_recipe("recipe.yaml", overrides=settings).data.cache
    assert cache is not None
    assert cache.folder == "/scratch/small"
    assert "cp -Ru" not in text


def test_continuations_are_an_array_one_at_a_time_that_ends_with_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = dry_run(capsys, *SLURM, "--continuations", "5", "--partition", "p1")
    assert "#SBATCH --array=1-5%1\n" in text
    assert "#SBATCH --partition=p1\n" in text
    assert "scontrol requeue" not in text
    assert 'case $code in 0|2) scancel --state=PENDING "$SLURM_ARRAY_JOB_ID";; esac\n' in text
    assert "/logs/batch-%A_%a.log " in text


def test_restarts_put_the_supervisor_in_the_place_of_srun_in_a_job_that_outlives_its_nodes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = dry_run(capsys, *SLURM, "--restarts", "5", "--no-preflight", "--set", "seed=3")
    assert "#SBATCH --no-kill\n" in text
    assert "cluster preflight" not in text
    asked = "--slurm --procs 4 --profile generic_slurm --set seed=3 --restarts 5 --no-check --no-preflight\ncode=$?"
    assert f" -u -m cluster supervise {Path.cwd()}/recipe.yaml {asked}" in text
    assert "cluster preflight" not in dry_run(capsys, *SLURM, "--nodes", "1")


def test_supervising_over_ssh_shows_the_agent_of_each_host(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.yaml").write_text("environment: {A: 'b c'}\n")
    named = hosts("a slots=2\nb slots=2\n")
    text = dry_run(capsys, "supervise", "recipe.yaml", *named, "--profile", "site.yaml")
    first, second, third = text.splitlines()
    assert first == f"# 4 rank(s), started by these: trainer pretrain {folder}/recipe.yaml"
    argv = shlex.split(second)
    assert argv[:6] == ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "a"]
    assert argv[6] == f"cd {folder} && exec env 'A=b c' {sys.executable} -m cluster.agent"
    assert shlex.split(third)[5] == "b"


def test_pyxis_and_a_cpu_site_change_the_srun_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.yaml").write_text("device: cpu\ncontainer: {runtime: pyxis, image: /i.sqsh, mounts: ['/d:/d']}\n")
    text = dry_run(capsys, *SLURM, "--profile", "site.yaml")
    assert (
        f" --container-image=/i.sqsh --container-mounts={folder}:{folder},/d:/d --container-workdir={folder} " in text
    )
    assert "--gpus-per-node" not in text
    assert "--gpu-bind" not in text


CONTAINERS = {
    "pyxis": (
        "--container-image=/i.img --container-mounts={folder}:{folder},/fast:/fast,/d:/d --container-workdir={folder} ",
        "",
    ),
    "apptainer": (
        "",
        "apptainer exec --nv --bind {folder}:{folder} --bind /fast:/fast --bind /d:/d --pwd {folder} /i.img ",
    ),
}


@pytest.mark.parametrize("runtime", CONTAINERS)
def test_in_containers_the_supervisor_stays_outside_and_its_agents_run_inside(
    runtime: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("site.yaml").write_text(
        f"container: {{runtime: {runtime}, image: /i.img, mounts: ['/d:/d']}}\n"
        "python: /inside/python\nscratch: /fast\nenvironment: {A: b}\n"
    )
    asked = ("--profile", "site.yaml", "--set", "data.shards=s3://b/s")
    text = dry_run(capsys, *SLURM, *asked, "--restarts", "2", "--preflight")
    script = text.partition('mkdir -p "$logs" || exit 2\n')[2].partition("\ncode=$?")[0]
    ours = f"{sys.executable} -u -m cluster"
    job = f"{folder}/recipe.yaml --slurm --procs 4 --profile {folder}/site.yaml --set data.shards=s3://b/s"
    job += " --set data.cache.folder=/fast/small"
    assert script == (
        f"{sys.executable} -c 'import cluster.__main__' || {{ echo 'error: this node has no {sys.executable} with the "
        "project, which --restarts and --preflight run outside the container; leave them out, or submit from an "
        "environment that the nodes share' >&2; exit 2; }\n\n"
        f"{ours} preflight {job} || exit 2\n"
        f"{ours} supervise {job} --restarts 2 --no-check --no-preflight"
    )
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    told = dry_run(capsys, "supervise", "recipe.yaml", "--slurm", "--procs", "4", *asked)
    of_srun, before = (part.format(folder=folder) for part in CONTAINERS[runtime])
    assert told.splitlines()[1] == (
        "srun --overlap --immediate=10 --nodes=1 --ntasks=1 --nodelist=n1 --unbuffered --cpu-bind=none "
        f"{of_srun}env A=b {before}/inside/python -m cluster.agent"
    )
    # Unasked, nothing runs where only the container is known to be.
    plain = dry_run(capsys, *SLURM, *asked)
    assert "-m cluster" not in plain
    assert "import cluster" not in plain


def test_percent_signs_of_a_path_are_no_fields_of_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/50%%j/small/logs/batch-%j.log" in dry_run(capsys, *SLURM, "--set", "runs_dir=50%j")


@pytest.mark.parametrize("path", sorted(PROFILES_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_that_comes_along_makes_a_script(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = dry_run(capsys, *SLURM, "--profile", path.stem)
    profile = load_profile(path.stem)
    assert all(f"export {name}=" in text for name in profile.environment)
    assert ("#SBATCH --gpus-per-node=4\n" in text) == (profile.device == "gpu")


DEEPSPEED = ("deepspeed", "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=2\n\n# b\na slots=1\n", "hosts:4: a stands already on line 1; remove one"),
        ("a slots=0\n", "hosts:1: a has slots=0; give it at least 1 or remove the line"),
        ("a slots=two\n", "hosts:1: 'a slots=two' is not of the form NAME slots=N"),
        ("a\n", "hosts:1: 'a' is not of the form NAME slots=N"),
        ("a slots=２\n", "hosts:1: 'a slots=２' is not of the form NAME slots=N"),
        ("a slots=" + 5000 * "9", "is not of the form NAME slots=N"),
        ("-oProxyCommand=x slots=1\n", "hosts:1: '-oProxyCommand=x slots=1' is not of the form"),
        ("a;reboot slots=1\n", "hosts:1: 'a;reboot slots=1' is not of the form"),
        ("a slots=2 extra\n", "hosts:1: 'a slots=2 extra' is not of the form"),
        ("# nobody\n", "hosts: names no host"),
        ("a slots=1\nb slots=3\n", "deepspeed numbers the GPUs of a host wrongly where slots differ (a slots=1, b slo"),
        ("a slots=3\n", "3 processes do not fit the recipe: global_batch_size=16 is not divisible by micro_batch"),
    ],
)
def test_a_wrong_hostfile_is_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in mistake(capsys, *DEEPSPEED, *hosts(text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*DEEPSPEED, "--hostfile", "none"), "--hostfile none: no such file"),
        (("local", "recipe.yaml", "--procs", "0"), "--procs 0 must be at least 1"),
        (("local", "recipe.yaml", "--procs", "3"), "3 processes do not fit the recipe"),
        (
            ("local", "recipe.yaml", "--procs", "3", "--set", "parallel.num_stages=2"),
            "3 processes do not fit the recipe: num_stages=2 does not divide world_size=3",
        ),
        (("local", "nothing.yaml", "--procs", "2"), "nothing.yaml: no such file"),
        (("local", "recipe.yaml", "--procs", "2", "--set", "seeds=1"), "seeds is not a known key; did you mean seed?"),
        (("local", "recipe.yaml", "--procs", "2", "--profile", "cpus"), "did you mean cpu?"),
        (("local", "recipe.yaml", "--procs", "2", "--profile", "dgx_h100"), "sets cpus_per_task, sbatch, scratch, con"),
        ((*SLURM[:-1], "soon"), "--time soon: not a time as SLURM writes it"),
        ((*SLURM[:-1], "0"), "--time 0: not a time"),
        ((*SLURM[:-1], "5\n"), "--time 5 : not a time"),
        ((*SLURM[:-1], "٣"), "--time ٣: not a time"),
        ((*SLURM, "--partition", "big\n"), "not the name of a partition"),
        ((*SLURM, "--partition", "a b"), "--partition 'a b': not the name of a partition"),
        ((*SLURM, "--continuations", "0"), "--continuations 0 must be at least 1"),
        ((*SLURM, "--restarts", "-1"), "--restarts -1 must be at least 0"),
        (("supervise", "demo", "--slurm", "--procs", "2"), "SLURM_JOB_NODELIST is not set: this is no SLURM job"),
        (("supervise", "demo", "--slurm", "--restarts", "-1"), "--restarts -1 must be at least 0"),
        (("supervise", "demo", "--hostfile", "x", "--procs", "2"), "--procs belongs to --slurm"),
        ((*SLURM, "--nodes", "-1"), "--nodes -1 must be at least 1"),
        ((*SLURM, "--set", "runs_dir=a\\b"), "holds a backslash, which SLURM reads"),
        (
            ("slurm", "bert_base", *SLURM[2:], "--profile", "aws_parallelcluster"),
            "the profile's scratch=/scratch takes ready shards, on the network or in data.shards",
        ),
        (SLURM, "sbatch is not on the PATH, so there is no SLURM here"),
        (("status", "runs/none"), "runs/none has no job that `python -m cluster slurm` submitted"),
        (("cancel", "runs/none"), "runs/none has no job"),
        (("logs", "runs/none", "--rank", "1"), "runs/none/logs has no log of rank 1; there are none yet"),
    ],
)
def test_a_mistake_on_the_command_line_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in mistake(capsys, *arguments)


def test_programs_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    named = hosts("a slots=2\n")
    assert "pdsh is not on the PATH" in mistake(capsys, *DEEPSPEED, *named)
    assert "mpirun is not on the PATH" in mistake(capsys, "mpi", "recipe.yaml", *named, "-n", "2")
    assert "-n 3: hosts offers 2 slots on 1 host(s); ask for 1 to 2" in mistake(
        capsys, "mpi", "recipe.yaml", *named, "-n", "3"
    )


def test_mpichs_mpirun_which_hides_failures_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bin").mkdir()
    (folder / "bin/mpirun").write_text("#!/bin/sh\necho HYDRA build details:\n")
    (folder / "bin/mpirun").chmod(0o755)
    named = hosts("a slots=2\n")
    assert "mpirun is not Open MPI's (HYDRA build" in mistake(capsys, "mpi", "recipe.yaml", *named, "-n", "2")


@pytest.mark.parametrize("text", ["garbage\n", "{}\n", '{"job_id": "--user=root"}\n', '{"job_id": "1; x"}\n', ""])
@pytest.mark.parametrize("command", ["status", "cancel"])
def test_a_damaged_list_of_jobs_is_named_and_nothing_of_it_reaches_slurm(
    command: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run/jobs.jsonl").write_text(text)
    assert "run/jobs.jsonl: the last line names no job" in mistake(capsys, command, "run")


@pytest.mark.parametrize("name", ["a b", "a;touch x", "$(touch x)", "a\n"])
def test_deepspeed_over_ssh_refuses_a_folder_that_a_shell_would_read(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).mkdir()
    monkeypatch.chdir(folder / name)
    Path("recipe.yaml").write_text(RECIPE)
    assert "deepspeed hands the folder" in mistake(capsys, *DEEPSPEED, *hosts("a slots=2\n"))


def test_percent_signs_which_pdsh_would_replace_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    named = hosts("a slots=2\n")
    assert "cannot go through pdsh" in mistake(capsys, *DEEPSPEED, *named, "--set", "runs_dir=a%h")
    Path("site.yaml").write_text("environment: {A: '%h'}\n")
    assert "'%h' cannot go through pdsh" in mistake(capsys, *DEEPSPEED, *named, "--profile", "site.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitions: x\n", "site.yaml:1: partitions is not a known key; did you mean partition?"),
        ("device: cpu\ncontainer: {runtime: docker, image: x}\n", "site.yaml:2: container.runtime='docker' must be"),
        ("environment: {A-B: x}\n", "site.yaml:1: "),
        ("environment: {A: 1}\n", "environment.A=1 is a whole number and must be text; quote it: '1'"),
        ("partition: a;b\n", "site.yaml:1: partition='a;b' must be letters, digits"),
        ("sbatch: ['--x=$(y)']\n", "site.yaml:1: sbatch[0]="),
        ("scratch: here\n", "site.yaml:1: scratch='here'"),
        ("", "site.yaml: a profile is a mapping of keys to values"),
    ],
)
def test_a_wrong_profile_is_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.yaml").write_text(text)
    assert message in mistake(capsys, "local", "recipe.yaml", "--procs", "2", "--profile", "site.yaml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.ds_config=nowhere", "engine.ds_config='nowhere' is neither a .json file nor a name"),
        ("data.shards=nowhere", "nowhere"),
    ],
)
def test_what_the_trainer_would_refuse_is_told_before_anything_starts(
    setting: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    assert message in mistake(capsys, "local", "recipe.yaml", "--procs", "2", "--set", setting)


def test_without_pytorch_the_rest_of_the_check_is_left_to_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    spec = describe_job("recipe.yaml", overrides=[], profile=None, processes=[2], workdir=Path.cwd())
    said: list[str] = []
    run_check(spec, report=said.append)
    assert said == ["no PyTorch here: the recipe's batch was checked, the rest is when the job starts"]
