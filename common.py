"""What every script needs and no algorithm is about: arguments, the run's folder, tokenization, preference models, evaluation.

Lengths are in tokens, log-probabilities and KL in nats. Ids are plain lists of ints until `collate` makes tensors of them.
"""

import hashlib
import importlib.util
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import datasets
import filelock
import safetensors.torch
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import distributed
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.nn.functional import linear, rms_norm, silu
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from torch.utils.tensorboard import SummaryWriter
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin, StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

DEFAULT_SETUP = "setups/reviews"
LOGS = "metrics", "timings", "evals"  # a run's files of JSON lines
FREE = "out", "resume", "device", "wandb", "save_policies", "eval_batch_size"  # arguments that may differ when a run goes on
FREE += ("gradient_checkpointing",)  # whose numbers are the same to the bit


def fail(message: str) -> NoReturn:
    """End the program with one line on stderr and exit code 1."""
    if rank():
        time.sleep(5)  # the first process has most likely failed too: it speaks for all, and the launcher ends this one
    raise SystemExit(f"error: {message}")


def quiet() -> None:
    """Let transformers and datasets say nothing: what is to be said is said in our own lines."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)


def run_command(main, args) -> None:
    """main(args), where what no program can prevent ends in one line too: Ctrl-C, a full disk, too little memory."""
    quiet()
    try:
        main(args)
    except SystemExit as end:
        if end.code:
            raise
    except KeyboardInterrupt:
        again = f" with --out {args.out} --resume" if hasattr(args, "resume") and args.out else ""
        fail(f"interrupted; the same command{again} goes on where it can")
    except (OSError, safetensors.SafetensorError) as error:
        fail(f"a file could not be read or written ({first_line(error)})")
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            fail(f"another process of this run has ended ({first_line(error)}); the last checkpoint is kept, see --resume")
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        sizes = "--batch-size, --eval-batch-size" if hasattr(args, "eval_batch_size") else "--batch-size"
        fail(f"out of memory ({first_line(error)}); lower {sizes} or the --max-...-tokens")
    if distributed.is_initialized():
        distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # a thread of torch may hold a tensor still, and would take the process down (SIGABRT) as Python ends


# ---------------------------------------------------------------------------------------------------------- processes

# `accelerate launch` or `torchrun` starts several processes of one run. Each takes its share of every batch, and of the noise
# that was drawn for the whole batch; what it finds is gathered, so that every number is that of the whole. Alone, a process
# has all rows, and nothing here does anything.


def rank() -> int:
    """This process's number, 0 for the one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Until all processes are here."""
    if processes() > 1:
        distributed.barrier()


def share(count: int) -> list[int]:
    """The rows of `count` that are this process's, every n-th; equally many for all, if need be by rows that come twice."""
    return [row % count for row in range(rank(), count + -count % processes(), processes())]


def gather(values: list, count: int) -> list:
    """The values that all processes have for their shares of `count` rows, in the order of the rows."""
    if processes() == 1:
        return values
    shares = gather_object([values])
    return list(itertools.chain(*zip(*shares)))[:count]


def sum_gradients(model) -> None:
    """Let every process have the sum of all gradients. FSDP has summed those of the weights that it has sharded."""
    if processes() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(summed.view_as(gradient))


def clip_gradients(model, max_norm: float) -> torch.Tensor:
    """Scale the gradient down to this norm where it is longer; returns the norm that it had."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    kinds = [[gradient for gradient in gradients if isinstance(gradient, DTensor) == kind] for kind in (True, False)]
    norms = [get_total_norm(kind) for kind in kinds if kind]
    norm = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    torch._foreach_mul_([local(gradient) for gradient in gradients], (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def sharded(model) -> bool:
    """Whether the model's weights are spread over the processes, so that each of its layers is a meeting of all of them."""
    return isinstance(model.base_model, FSDPModule)


def rows_left(model, going: torch.Tensor) -> torch.Tensor:
    """The numbers of the rows that go on, of (N,) yes or no; none when all have ended.

    Where the model is sharded, all processes must call it as often: one row stays as long as another process goes on.
    """
    left = going.nonzero()[:, 0]
    if sharded(model):
        everywhere = torch.tensor([len(left)], device=going.device)
        distributed.all_reduce(everywhere)
        left = left.new_zeros(1) if everywhere.item() and not len(left) else left
    return left


def shard(model, device: str):
    """Spread the layers' weights over all processes (FSDP2). Embeddings stay whole: a model may share them with its head."""
    mesh = torch.distributed.init_device_mesh(torch.device(device).type, (processes(),))
    whole = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model.base_model, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum, as everywhere; and one that Gloo knows
            module.set_force_sum_reduction_for_comms(True)
    return model.to(device)


def layers_of(model) -> list:
    """Its transformer layers."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def parameter_groups(model) -> list[dict]:
    """All weights, the sharded ones apart: one call of the fused AdamW takes only one kind."""
    kinds = [[p for p in model.parameters() if isinstance(p, DTensor) == kind] for kind in (False, True)]
    return [{"params": group} for group in kinds if group]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# ---------------------------------------------------------------------------------------------------------- arguments


def check_ranges(args, zero: tuple[str, ...]) -> None:
    """End the program where a number is negative, 0 or not finite; fields named in `zero` may be 0."""
    for field in fields(args):
        values, flag = getattr(args, field.name), f"--{field.name.replace('_', '-')}"
        for value in values if isinstance(values, tuple) else (values,):
            if type(value) in (int, float) and not (0 <= value < math.inf and (value or field.name in zero)):
                fail(f"{flag} {value}: must be a finite number " + ("of 0 or more" if field.name in zero else "above 0"))


def check_args(args) -> None:
    """Check a script's Args, then fill what was left open from the setup.

    --model, --dataset, --golden, --baseline and --proxy default to the parts of the setup; a part of these two that it lacks
    stays None. Where nothing is named at all, the default setup serves, and is prepared first if it does not exist yet.
    """
    check_ranges(args, zero=("seed", "max_grad_norm"))
    required = [name for name in ("model", "dataset", "proxy") if hasattr(args, name)]
    named = [name for name in required if getattr(args, name) is not None]
    if args.setup is None and len(named) < len(required):
        args.setup = DEFAULT_SETUP
        ready = Path(args.setup, "baseline").exists()  # its last part
        if named or not (ready or Path("prepare").is_dir()):
            fail(f"no setup given: pass {' '.join('--' + name for name in required)}, or --setup FOLDER")
        if not ready and processes() > 1:
            fail(f"{args.setup} is not ready yet: run `python -m prepare --out {args.setup}` first, as one process")
        if not ready:
            print(f"{args.setup} is not ready yet: running `python -m prepare --out {args.setup}` first")
            if subprocess.run([sys.executable, "-m", "prepare", "--out", args.setup]).returncode:
                fail(f"python -m prepare --out {args.setup} did not finish; see above")
    if args.setup is not None and not Path(args.setup).is_dir():
        told = f"`python -m prepare --out {args.setup}` makes the reviews task there, docs/yours.md has your own"
        fail(f"--setup {args.setup}: no such folder; {told}")
    parts = {"model": "sft", "dataset": "d_golden", "proxy": "proxy", "golden": "golden", "baseline": "baseline"}
    for name, part in parts.items():
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, setup_part(args, part))
            if name in required and getattr(args, name) is None:
                fail(f"--setup {args.setup} has no {part}/: run `python -m prepare --out {args.setup}`, or pass --{name}")


def setup_part(args, name: str) -> str | None:
    """The path of a part of the setup, None where there is no such part."""
    return str(Path(args.setup, name)) if args.setup and Path(args.setup, name).exists() else None


def pick_device(name: str) -> str:
    """The device to run on; "auto" is cuda where there is one, else cpu. Of several processes each has a GPU of its own."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        if "LOCAL_RANK" in os.environ and name == "cuda":  # before anything is made, which would be on the first GPU
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.zeros(1, device=name).item()
        if "LOCAL_RANK" in os.environ:  # accelerate launch, or torchrun
            name = str(PartialState(cpu=name == "cpu").device).replace("cpu:0", "cpu")
        if torch.device(name).type == "cuda" and torch.device(name).index is not None:  # cuda:1
            torch.cuda.set_device(name)  # what names no GPU means this one
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name}: cannot be used here ({first_line(error)}); --device cpu always can")
    if torch.device(name).type == "cuda":
        # cuDNN's attention would come first on an H100: it plans anew for every shape, and its gradients have been nan
        torch.backends.cuda.enable_cudnn_sdp(False)
    if rank():
        sys.stdout = open(os.devnull, "w")  # what there is to say is said once
    return name


@contextmanager
def finished_folder(path: str | Path):
    """A folder that appears under its name only when it is complete: written aside, renamed at the end."""
    path = Path(path)
    if path.exists():
        fail(f"{path}: is there already; remove it or name another folder")
    aside = path.with_name(f"{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(path)


def arguments_of(out: Path) -> dict | None:
    """args.json of the run in this folder, None where there is none."""
    path = Path(out, "args.json")
    try:
        args = json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        args = {}
    if args is not None and not (isinstance(args, dict) and "script" in args):
        fail(f"{path}: is not what a run wrote; name another folder, or remove this one")
    return args


def changed_arguments(args, out: Path) -> list[str]:
    """The arguments that a run in this folder was begun with and that are others now, as flags; no run, no change."""
    was = arguments_of(out) or asdict(args)

    def place(value):  # one place may have several names
        return Path(value).resolve() if isinstance(value, str) and Path(value).exists() else value

    names = [name for name in asdict(args) if name not in FREE and place(was.get(name)) != place(getattr(args, name))]
    return [flag_of(name, was.get(name)) for name in names]


def flag_of(name: str, value) -> str:
    """An argument as it is typed."""
    flag = name.replace("_", "-")
    if value is None:
        return f"no --{flag}"
    return f"--{'no-' * (not value)}{flag}" if isinstance(value, bool) else f"--{flag} {value}"


def choose_folder(args, script: str) -> Path:
    """The folder of this run: --out, or a new one named after setup, script, seed and time. Nothing is written yet.

    It must be empty, or, with --resume, hold a run with the same arguments. If that is finished, the program ends well.
    """
    if args.resume and args.out is None:
        fail("--resume needs --out, the folder of the run to go on with")
    names = [args.out or f"runs/{Path(args.setup or args.model).name}/{script}__{args.seed}__{time.time():.2f}"]
    args.out = broadcast_object_list(names)[0] if processes() > 1 else names[0]
    out, begun = Path(args.out), Path(args.out, "args.json").exists()
    inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or (not begun and inside - {"args.json.partial", "responses", ".lock"}):
        fail(f"--out {out}: there is something in this place already, and it is no run; name another")
    check_begun(args, out, script)
    if getattr(args, "wandb", False) and not importlib.util.find_spec("wandb"):
        fail("--wandb needs Weights & Biases: pip install wandb")
    if args.batch_size % processes():
        fail(f"--batch-size {args.batch_size}: {processes()} processes share it, it must be a multiple of that")
    return out


def check_begun(args, out: Path, script: str) -> None:
    """End the program where this folder has a run that is not to be gone on with, or is finished: then it ends well."""
    begun = arguments_of(out)
    if begun and not args.resume:
        fail(f"--out {out}: there is a run in this place already; name another, or go on with it by --resume")
    if begun and begun["script"] != script:
        fail(f"--out {out}: this is a run of {begun['script']}.py; go on with that, or name another folder")
    if changed := changed_arguments(args, out):
        fail(f"--out {out}: this run was begun with {' '.join(changed)}; repeat that, or name another folder")
    if (out / "policy").exists():
        shutil.rmtree(out / "checkpoint", ignore_errors=True)  # what a kill during its removal has left
        print(f"{out}: this run is finished")
        raise SystemExit(0)


LOCKS = []  # held until the process ends, however it ends


def claim(folder: Path) -> None:
    """Make a folder and keep other processes from writing there at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    LOCKS.append(filelock.FileLock(folder / ".lock"))
    try:
        LOCKS[-1].acquire(blocking=False)
    except filelock.Timeout:
        fail(f"{folder}: another process is writing here; wait for it, or name another folder")


def revision(script: str) -> str | None:
    """The git revision of this file and the script beside it, `-dirty` behind it where they are not as in it; None without."""
    if not shutil.which("git"):
        return None
    told = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
    commands = ["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--", "common.py", f"{script}.py"]
    head, edited = (subprocess.run(command, **told).stdout.strip() for command in commands)
    return head + "-dirty" * bool(edited) if head else None


def contents(source: str) -> str | None:
    """SHA-256 of a file, or of all files of a folder and their names; None of a name on the Hub."""
    place, digest = Path(source), hashlib.sha256()
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path.is_file() and path.name != ".lock":
            digest.update(str(path.relative_to(place)).encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if place.exists() else None


def begin_run(args, out: Path, script: str) -> None:
    """Claim the folder, once for all processes, and write args.json: the fields of Args, flat, script, git revision, versions,
    and SHA-256 of what is read.

    A run that goes on keeps the args.json it has, and a line says what is not as it was: its numbers may differ then. Where a
    model or data are not as they were it would be another run, and the program ends.
    """
    wait()
    if rank():
        return
    claim(out)
    check_begun(args, out, script)  # again: while models were loaded, another process may have begun here, and ended
    (out / "responses").mkdir(exist_ok=True)
    now = {"git_revision": revision(script)}
    now |= {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    now |= {"threads": torch.get_num_threads(), "device": args.device, "processes": processes()}
    parts = {name: getattr(args, name, None) for name in ("model", "dataset", "proxy", "golden", "baseline")}
    read = {f"{name}_sha256": contents(source) for name, source in parts.items() if source}
    if was := arguments_of(out):
        if changed := [name for name, digest in read.items() if was.get(name, digest) != digest]:
            source = parts[changed[0].removesuffix("_sha256")]
            fail(f"--out {out}: {source} is not as it was when this run began; put that back, or begin anew in another folder")
        others = [f"{name} {was.get(name)}, now {now[name]}" for name in now if was.get(name) != now[name]]
        if others:
            print(f"{out}: was begun with {'; '.join(others)}")
    else:
        row = {"script": script, **asdict(args), **now, **read}
        (out / "args.json.partial").write_text(json.dumps(row, indent=1) + "\n")
        (out / "args.json.partial").replace(out / "args.json")


class Log:
    """log(name, row) appends a row to the run's NAME.jsonl and its numbers to TensorBoard; only the first process does."""

    def __init__(self, args, out: Path, done: int):
        self.tracker = None
        if args.wandb:
            import wandb

            if not (out / ".wandb").exists():
                (out / ".wandb").write_text(os.urandom(8).hex())
            names = {"project": "tandem", "name": str(out), "id": (out / ".wandb").read_text()}
            self.tracker = wandb.init(**names, resume="allow", config=vars(args), sync_tensorboard=True)
        self.writer = SummaryWriter(str(out), purge_step=done + 1)
        self.writer.add_text("args", "  \n".join(f"{name}: {value}" for name, value in vars(args).items()), done)
        self.files = {name: open(out / f"{name}.jsonl", "a", buffering=1) for name in LOGS}

    def __call__(self, name: str, row: dict) -> None:
        self.files[name].write(json.dumps(row) + "\n")
        done = row["step"] + (name != "evals")  # updates: an evaluation has their number, and steps are counted from 0
        for key, value in row.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(f"{name}/{key}", value, done)

    def close(self) -> None:
        self.writer.close()
        if self.tracker:
            self.tracker.finish()  # not left to the end of Python, which several processes do not reach


def open_log(args, out: Path, done: int):
    """The Log of a run that goes on after `done` steps, with --wandb Weights & Biases beside it."""
    return Log(args, out, done) if not rank() else lambda name, row: None


def save_responses(out: Path, step: int, rows: list[dict]) -> None:
    """responses/<step>.jsonl: what the policy answered at an evaluation."""
    if not rank():
        (out / "responses" / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ONLINE_PAIRS = "online_pairs/train.jsonl"


def save_pairs(out: Path, pairs: list[tuple]) -> None:
    """Append pairs, (prompt, chosen, rejected, margin), to online_pairs/ as ids: text would not always give them back.

    The margin is kept for chosen over rejected, which is never negative, in whichever order they were sampled.
    """
    if not rank():
        (out / ONLINE_PAIRS).parent.mkdir(exist_ok=True)
        with open(out / ONLINE_PAIRS, "a") as file:
            columns = ("prompt_ids", "chosen_ids", "rejected_ids", "margin")
            file.writelines(json.dumps(dict(zip(columns, (*ids, margin and abs(margin))))) + "\n" for *ids, margin in pairs)


def save_policy(path: Path, policy, tokenizer) -> None:
    """A folder that transformers can load, whole when it appears under its name; an older one is replaced."""
    weights = policy.state_dict()
    for name, weight in weights.items():
        if isinstance(weight, DTensor):
            whole = weight.full_tensor()  # all processes meet
            weights[name] = whole.cpu().clone() if not rank() else None
    if not rank():
        shutil.rmtree(path, ignore_errors=True)
        with finished_folder(path) as folder:
            policy.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)
    wait()


def finish_run(out: Path, policy, tokenizer, log) -> None:
    """Write policy/, which says that the run is finished, and remove what was there to go on from."""
    save_policy(out / "policy", policy, tokenizer)
    if not rank():
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
        log.close()
    print(f"wrote {out}")


def save_checkpoint(out: Path, step: int, policy, optimizer) -> None:
    """checkpoint/<step>: weights, AdamW's moments, and how long the run's files are. Older ones go when it is complete.

    Where weights are sharded each process writes its own part.
    """
    folder = out / "checkpoint" / str(step)
    aside = folder.with_name(f"{step}.partial")
    if not rank():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    wait()
    if not rank() or sharded(policy):
        weights = {name: local(p.detach()).contiguous() for name, p in policy.named_parameters()}
        safetensors.torch.save_file(weights, aside / part_of("policy", policy))
        state = optimizer.state_dict()["state"]
        tensors = {f"{i}.{name}": local(value) for i, values in state.items() for name, value in values.items()}
        safetensors.torch.save_file(tensors, aside / part_of("optimizer", policy))
    wait()
    if not rank():
        files = [name for name in (*(f"{name}.jsonl" for name in LOGS), ONLINE_PAIRS) if (out / name).exists()]
        sizes = {name: (out / name).stat().st_size for name in files}
        (aside / "state.json").write_text(json.dumps({"step": step, "sizes": sizes}))
        aside.rename(folder)
        for other in folder.parent.iterdir():
            if other.name != str(step):
                shutil.rmtree(other)


def part_of(name: str, policy) -> str:
    """The name of a checkpoint's file, or of this process's part of it."""
    return name + (f"-{rank()}-of-{processes()}" if sharded(policy) else "") + ".safetensors"


@torch.no_grad()
def load_checkpoint(out: Path, policy, optimizer) -> int:
    """Load the last complete checkpoint and cut the run's files back to it; returns its step, 0 where there is none."""
    done = [folder for folder in out.glob("checkpoint/*") if folder.name.isdigit()]
    if not done:
        for name in (*(f"{name}.jsonl" for name in LOGS), ONLINE_PAIRS) if not rank() else ():
            (out / name).unlink(missing_ok=True)
        return 0
    folder = max(done, key=lambda folder: int(folder.name))
    if not (folder / part_of("policy", policy)).exists():
        fail(f"{folder}: has no {part_of('policy', policy)}; go on with as many processes as before, sharded as before")
    weights = dict(policy.named_parameters())
    for name, value in safetensors.torch.load_file(folder / part_of("policy", policy)).items():
        local(weights[name]).copy_(value)
    state, owners = {}, [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in safetensors.torch.load_file(folder / part_of("optimizer", policy)).items():
        i, name = key.split(".")
        owner = owners[int(i)]
        if isinstance(owner, DTensor) and value.dim():
            options = {"run_check": False, "shape": owner.shape, "stride": owner.stride()}
            value = DTensor.from_local(value.to(owner.device), owner.device_mesh, owner.placements, **options)
        state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    try:
        state = json.loads((folder / "state.json").read_text())
    except ValueError:
        fail(f"{folder}/state.json: is no JSON; the run cannot go on from this checkpoint, begin it anew in another folder")
    for name, size in state["sizes"].items() if not rank() else ():
        if (out / name).stat().st_size < size:
            fail(f"{out / name}: is shorter than when {folder} was made; begin the run anew in another folder")
        os.truncate(out / name, size)
    return state["step"]


def generator(*key) -> torch.Generator:
    """A CPU generator that depends on nothing but its key, e.g. (seed, step, "sample"): randomness without state.

    Resuming a run needs no saved random state, and evaluating more often changes no training step.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batch_order(rows: int, batch_size: int, steps: int, seed: int, shuffle: str | int = "all") -> torch.Tensor:
    """Which row stands where: (steps, batch_size) indices, epoch after epoch, each epoch in a new order.

    shuffle "all" permutes an epoch, "none" keeps the order of the file, a number N permutes within windows of N batches.
    A shorter run is a prefix of a longer one; two scripts with equal seed and data use the same rows in the same steps.
    """
    if steps and batch_size > rows:
        fail(f"--batch-size {batch_size}: the data have only {rows} usable rows; lower it")
    window = {"all": rows, "none": 1}.get(shuffle) or shuffle * batch_size
    order = []
    for epoch in range(max(1, math.ceil(steps * batch_size / rows))):
        shuffler = generator(seed, epoch, "order")
        for first in range(0, rows, window):
            order.append(first + torch.randperm(min(window, rows - first), generator=shuffler))
    return torch.cat(order)[: steps * batch_size].view(steps, batch_size)


# -------------------------------------------------------------------------------------------------- models, tokenizers


def from_pretrained(kind, source: str, what: str, **options):
    """kind.from_pretrained(source), or one line that says what could not be loaded from where."""
    if not Path(source).exists() and (source.count("/") > 1 or source[:1] in "./~"):  # a Hub name is NAME or OWNER/NAME
        fail(f"{source}: there is no such folder, so no {what} can be loaded from it")
    if Path(source, "d_golden").is_dir():
        fail(f"{source}: is a setup; name a model in it, {Path(source, 'sft')} say")
    if Path(source, "adapter_config.json").is_file() and not Path(source, "config.json").is_file():
        fail(f"{source}: is an adapter, no whole model; merge it into its model (peft's merge_and_unload) and save that")
    try:
        return kind.from_pretrained(source, **options)
    except Exception as error:
        fail(f"{source}: no {what} can be loaded from it ({first_line(error)})")


def load_model(kind, source: str, what: str, device: str, tokens: int, new: bool = False, **options):
    """A model in fp32 without dropout that can read `tokens` tokens and whose weights all came from the source.

    transformers fills missing weights with random numbers, so that a preference model without a score would score by chance.
    With `new` the score, and nothing else, is to be new.
    """
    options |= {"dtype": torch.float32, "output_loading_info": True, "use_safetensors": True}  # never a pickle
    model, info = from_pretrained(kind, source, what, **options)
    missing = [key for key in sorted(info["missing_keys"]) if not new or key.startswith(f"{model.base_model_prefix}.")]
    if missing:
        fail(f"{source}: is no {what}: it has no weights for {missing[0]}")
    if tokens > context_of(model):
        fail(f"{source}: reads at most {context_of(model)} tokens, {tokens} may be asked of it; lower the --max-...-tokens")
    return fuse(model).to(device).eval()  # eval() turns dropout off; gradients flow all the same


class FusedRMSNorm(LlamaRMSNorm):
    """Llama's normalisation in PyTorch's one kernel, not eight: on a CPU in fp32 the same numbers, to the bit.

    For the backward pass it keeps its input alone. Under autocast its result is cast here, once, and not by each of the
    products that read it; their gradients add up in that type. That of Qwen3's queries and keys, in bf16 then, stays Llama's.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if states.dtype != self.weight.dtype:
            return super().forward(states)
        states = rms_norm(states, self.weight.shape, self.weight, self.variance_epsilon)
        kind = states.device.type
        return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


class GatedProduct(torch.autograd.Function):
    """(..., H): silu(gate) * up, both (..., F), times a (H, F) weight. For the backward pass it keeps gate and up alone and
    makes silu(gate) and its product with up again, where PyTorch keeps all four; the same numbers, to the bit."""

    @staticmethod
    def forward(ctx, gate, up, weight):
        ctx.save_for_backward(gate, up, weight)
        return linear(silu(gate) * up, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up, weight = ctx.saved_tensors
        active, grad_product = silu(gate), grad @ weight.to(grad.dtype)  # autocast computed with a weight of grad's type
        grad_weight = grad.flatten(0, -2).T @ (active * up).flatten(0, -2)
        return torch.ops.aten.silu_backward(grad_product * up, gate), grad_product * active, grad_weight


class LeanMLP(LlamaMLP):
    """Llama's feed-forward network by GatedProduct, where gradients are asked for and no adapter took a product's place.

    Under gradient checkpointing it is Llama's, which stops before its last product when it is computed again.
    """

    checkpointed = False

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        plain = all(type(part) is torch.nn.Linear for part in (self.gate_proj, self.up_proj, self.down_proj))
        if self.checkpointed or not plain or not torch.is_grad_enabled():
            return super().forward(states)
        return GatedProduct.apply(self.gate_proj(states), self.up_proj(states), self.down_proj.weight)


LLAMAS = "Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"  # families that normalise, and feed forward, by the same code


def fuse(model):
    """The model with fused attention, and with the two modules above in the place of Llama's, under any of these names."""
    transformers.AttentionInterface.register("sdpa", attention)
    norms, mlps = ([f"{family}{kind}" for family in LLAMAS] for kind in ("RMSNorm", "MLP"))
    for part in model.modules():
        if type(part).__name__ in norms:
            part.__class__ = FusedRMSNorm
        if type(part).__name__ in mlps and part.config.hidden_act == "silu" and part.down_proj.bias is None:
            part.__class__ = LeanMLP
    return model


def context_of(model) -> float:
    """The longest sequence that a model reads, in tokens; infinite where its config has no such limit."""
    return getattr(model.config, "max_position_embeddings", None) or math.inf


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_tokenizer(source: str):
    """A tokenizer from a folder or a Hub name; one without a padding token pads with its end token (masks are carried)."""
    tokenizer = from_pretrained(transformers.AutoTokenizer, source, "tokenizer")
    if tokenizer.eos_token_id is None:
        fail(f"{source}: its tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(source: str, model, tokenizer) -> None:
    """End the program where the tokenizer may give a token that the model has no embedding for; unknown words are refused."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= rows and token != tokenizer.unk_token]
    if beyond:
        fail(f"{source}: its tokenizer has {len(tokenizer)} tokens, its model only {rows}; they do not belong together")


@torch.no_grad()
def load_policy(source: str, device: str, tokens: int):
    """(causal language model that is to read `tokens` tokens, its tokenizer) from a folder or a Hub name.

    Under `accelerate launch --use_fsdp` its layers are sharded over all processes.
    """
    tokenizer, what = load_tokenizer(source), "causal language model"
    fsdp = parse_flag_from_env("ACCELERATE_USE_FSDP") and processes() > 1
    model = load_model(transformers.AutoModelForCausalLM, source, what, "cpu" if fsdp else device, tokens)
    check_vocabulary(source, model, tokenizer)
    tokenizer.rows = model.get_input_embeddings().weight.shape[0]  # what may be sampled, padding of the vocabulary included
    if any("SequenceClassification" in name for name in model.config.architectures or []):
        fail(f"{source}: is a preference model, no {what}")
    ids = torch.tensor([[0, 0], [0, 1]], device=model.device)
    logits, states = model(ids).logits, model.base_model(ids).last_hidden_state
    if not logits.isfinite().all():
        fail(f"{source}: its logits are no finite numbers; its weights are broken")
    if not torch.allclose(*logits[:, 0], atol=1e-4):
        fail(f"{source}: is no {what}: what it says of a token depends on the tokens after it")
    layers = transformers.DynamicCache(config=model.config).layers
    if not all(isinstance(x, DynamicLayer) and not isinstance(x, LinearAttentionCacheLayerMixin) for x in layers):
        fail(f"{source}: keeps more between tokens than keys and values (a state-space or linear layer); sampling needs those")
    if not torch.allclose(logits, model.get_output_embeddings()(states), atol=1e-4):
        fail(f"{source}: its logits are scaled or capped behind its output layer, which the scripts do not do")
    return shard(model, device) if fsdp else model, tokenizer


# What a layer keeps under "selective" gradient checkpointing: results that cost a product of matrices, or attention.
PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
PRODUCTS += [
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}").default
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
]


@contextmanager
def recomputing(model, checkpointing: str):
    """Within it a model's layers keep less, and compute it again in the backward pass: the same numbers, to the bit.

    "off": they keep all that the backward pass needs. "selective": only PRODUCTS, and nothing expensive is computed twice.
    "full": nothing; each layer is computed again.

    transformers does that in training mode alone; so the layers are in training mode, and all dropout is off: its modules are
    in evaluation mode, and a layer that applies it itself, as OPT's does, finds a probability of 0 in itself and its config.
    """
    layers = layers_of(model) if checkpointing != "off" else []
    owners = [vars(owner) for owner in (model.config, *layers)] if layers else []
    dropouts = [(own, name, value) for own in owners for name, value in own.items() if "drop" in name]
    if layers:  # transformers renames it on the way to version 6
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        selective = {"context_fn": partial(create_selective_checkpoint_contexts, PRODUCTS)}
        enable({"use_reentrant": False} | (selective if checkpointing == "selective" else {}))
        model.disable_input_require_grads()  # a hook on the embeddings, one more with each call, that adapters alone need
    for layer in layers:
        layer.training = True
    for part in model.modules():
        if isinstance(part, LeanMLP):
            part.checkpointed = bool(layers)  # until the next call: the backward pass, after this one, must find the same
    for own, name, _ in dropouts:
        own[name] = 0.0
    yield
    for own, name, value in dropouts:
        own[name] = value
    for layer in layers:
        layer.training = False


# --------------------------------------------------------------------------------------------------------- preferences


def load_rows(source: str, split: str = "train") -> list[dict]:
    """The rows of a json, jsonl, csv or parquet file (gzipped, or one of a Hub data set's), a folder, or a Hub data set."""
    if Path(source, "d_golden").is_dir():
        fail(f"{source}: is a setup; name the pairs in it, {Path(source, 'd_golden')} or {Path(source, 'd_initial')}")
    if any(Path(source).glob("*.safetensors")):
        fail(f"{source}: is a model, no preference data")
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else reading a local file is reported over the network
    is_file = Path(source).is_file() or "://" in source  # hf://datasets/OWNER/NAME/FILE
    if not is_file and not Path(source).exists() and any(ending in source for ending in (".json", ".csv", ".parquet")):
        fail(f"{source}: there is no such file")
    try:
        if is_file:
            kind = next((kind for kind in ("parquet", "csv") if f".{kind}" in Path(source).suffixes), "json")
            return datasets.load_dataset(kind, data_files=str(source), split="train").to_list()
        if Path(source, "state.json").is_file():  # Dataset.save_to_disk
            return datasets.load_from_disk(str(source)).to_list()
        return datasets.load_dataset(str(source), split=split).to_list()
    except StopIteration:
        fail(f"{source}: is empty")
    except Exception as error:
        fail(f"{source}: cannot be read as {split} preference data ({first_line(error.__cause__ or error)})")


def has_test(source: str) -> bool:
    """Whether a folder or a data set of the Hub has a split named test, which is held out; a file has none."""
    try:
        return not Path(source).is_file() and "test" in datasets.get_dataset_split_names(source)
    except Exception:  # what is wrong with it, load_rows says
        return False


class Prompt(list):
    """A prompt's ids; where it is a conversation, its messages too, for a preference model with a chat template of its own."""

    messages: list[dict] | None = None


def conversation(value) -> bool:
    """Whether it is a list of messages, {role, content}."""
    keys = [m.keys() if isinstance(m, dict) else set() for m in value] if isinstance(value, list) else []
    return len(keys) > 0 and all({"role", "content"} <= names for names in keys)


def row_strings(row: dict, tokenizer, names: tuple) -> tuple[str, list[str], list[dict] | None]:
    """(prompt, [chosen, rejected], messages) from a row in any of the ecosystem's forms; ValueError says what is wrong.

    Strings with or without a prompt column, or lists of {role, content}: then the chat template is applied to the prompt's
    messages, and the response is the last message's text, which an assistant writes and ends with the end token.
    names: ("chosen", "rejected"), or () for a prompt alone.
    """
    if not set(names) <= row.keys():
        raise ValueError(f"there must be columns chosen and rejected, there are {', '.join(row)} (prompts alone serve online)")
    prompt, responses, messages = row.get("prompt"), [row[name] for name in names], None
    if names and all(map(conversation, responses)):
        heads, answers = [said[:-1] for said in responses], [said[-1] for said in responses]
        if not isinstance(prompt, list) or heads[0]:  # the prompt is inside both
            if heads[0] != heads[1] or not heads[0] or (isinstance(prompt, list) and prompt != heads[0]):
                raise ValueError("chosen and rejected do not go on from one prompt by one message each")
            prompt = heads[0]
        if not conversation(prompt):
            raise ValueError("the prompt is no list of messages")
        if {answer.get("role") for answer in answers} != {"assistant"}:
            raise ValueError("the last message of chosen and of rejected must be the assistant's")
        messages, responses = prompt, [answer.get("content") for answer in answers]
    elif not names and conversation(prompt):
        messages = prompt
        if messages[-1].get("role") == "assistant":
            raise ValueError("the prompt's last message is the assistant's")
    elif names and prompt is None and all(isinstance(text, str) for text in responses):
        (prompt, mark, chosen), (other, _, rejected) = (text.rpartition("\n\nAssistant:") for text in responses)
        if not prompt or prompt != other:
            raise ValueError("there is no prompt, and chosen and rejected share no prompt up to '\\n\\nAssistant:'")
        prompt, responses = prompt + mark, [chosen, rejected]
    if messages:
        if tokenizer.chat_template is None:
            raise ValueError("conversational, but the tokenizer has no chat template")
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    if not {type(row.get(f"{name}_finished")) for name in names} <= {bool, type(None)}:
        raise ValueError("chosen_finished and rejected_finished must be true or false")
    for name, text in zip(("prompt", *names), (prompt, *responses)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is " + ("no text" if not isinstance(text, str) else "blank"))
    return prompt, responses, messages


def encode_prompts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of texts that begin with a prompt, each distinct one encoded once."""
    ids = dict.fromkeys(texts)
    for own in (False, True):  # a chat template wrote its own first token
        some = [text for text in ids if own == bool(tokenizer.bos_token and text.startswith(tokenizer.bos_token))]
        if some:
            ids |= zip(some, tokenizer(some, add_special_tokens=not own, return_attention_mask=False).input_ids)
    return [ids[text] for text in texts]


def encode(tokenizer, prompts: list[str], responses: list[str], finished: list[bool]) -> tuple[list, list, int]:
    """Ids of prompts and responses, and how many responses had to be encoded alone.

    A response's ids are what prompt + response adds to the prompt's own ids, because that is what a model samples:
    encoded alone, many tokenizers start a text with a word mark. Where the prompt's ids change when a response follows,
    the response is encoded alone. The end token is appended to a response that ended with EOS only.
    """
    heads = encode_prompts(tokenizer, prompts)
    wholes = encode_prompts(tokenizer, [p + r for p, r in zip(prompts, responses)])
    alone = [i for i, (head, whole) in enumerate(zip(heads, wholes)) if whole[: len(head)] != head]
    tails = [whole[len(head) :] for head, whole in zip(heads, wholes)]
    for i in alone:
        tails[i] = tokenizer(responses[i], add_special_tokens=False).input_ids
    end = [tokenizer.eos_token_id]
    return heads, [t + end * done for t, done in zip(tails, finished)], len(alone)


def decode(tokenizer, prompts: list[list[int]], responses: list[list[int]]) -> tuple[list[str], list[bool]]:
    """Responses as text, without special tokens, and whether each has its end token: the inverse of `encode`.

    Decoded behind their prompts, because many tokenizers swallow the space at the start of a text.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    heads = tokenizer.batch_decode(prompts, **options)
    wholes = tokenizer.batch_decode([x + y for x, y in zip(prompts, responses)], **options)
    finished = [y[-1:] == [tokenizer.eos_token_id] for y in responses]
    return [whole[len(head) :] for head, whole in zip(heads, wholes)], finished


def unknown_ids(tokenizer) -> set[int]:
    """The id that stands for a word that the tokenizer does not know; none where another token has it too."""
    return {tokenizer.unk_token_id} - {None, tokenizer.bos_token_id, tokenizer.eos_token_id}


def load_pairs(
    source: str,
    tokenizer,
    max_prompt_tokens: int,
    max_response_tokens: int,
    on_bad_row: str,
    split: str = "train",
    prompts_alone: bool = False,
) -> list[dict]:
    """Preference pairs: {prompt, chosen, rejected} as ids, `text` the prompt as a string, `row` its number, `margin`.

    The saved online pairs (--save-pairs) have ids already: they are used as they are, ties and all. With prompts_alone,
    data that have a column prompt and no responses will do; there is no chosen and rejected then.

    A row that cannot be used as it is ends the program with its number (counted from 0) and what is wrong with it, or,
    with on_bad_row "skip", is left out and counted in a line. Nothing is ever cut to fit.
    """
    rows, strings, pairs, bad, alone = load_rows(source, split), {}, {}, {}, 0
    columns = rows[0].keys() if rows else ()
    if "chosen_ids" in columns:
        return load_saved_pairs(source, rows, tokenizer, max_prompt_tokens, max_response_tokens)
    names = () if prompts_alone and "prompt" in columns and not {"chosen", "rejected"} & columns else ("chosen", "rejected")
    for number, row in enumerate(rows):
        try:
            strings[number] = row_strings(row, tokenizer, names)
        except Exception as error:  # whatever a row, or a chat template that refuses it, may raise
            bad[number] = first_line(error)
    eos, unknown = tokenizer.eos_token_id, unknown_ids(tokenizer)
    texts, responses, messages = zip(*strings.values()) if strings else ((), (), ())
    for number, text, prompt, said in zip(strings, texts, encode_prompts(tokenizer, texts), messages):
        margin = rows[number].get("margin")
        pairs[number] = {"row": number, "text": text, "prompt": Prompt(prompt)}
        pairs[number]["margin"] = margin if isinstance(margin, (int, float)) else None  # a text is no preference model's
        pairs[number]["prompt"].messages = said
        if not prompt:
            bad[number] = "the prompt has no tokens"
        elif unknown.intersection(prompt):
            bad[number] = "the prompt has a word that the tokenizer does not know"
        elif len(prompt) > max_prompt_tokens:
            bad[number] = f"the prompt has {len(prompt)} tokens, --max-prompt-tokens is {max_prompt_tokens}"
    for name, column in zip(names, zip(*responses)):
        finished = [rows[n].get(f"{name}_finished", True) is not False for n in strings]
        _, column, count = encode(tokenizer, texts, column, finished)
        alone += count
        for number, response, done in zip(strings, column, finished):
            pairs[number][name] = response
            body = response[: len(response) - done]
            if number in bad:
                continue
            if unknown.intersection(body):
                bad[number] = f"{name} has a word that the tokenizer does not know"
            elif eos in body:
                bad[number] = f"{name} has the end token {tokenizer.eos_token} in its text; pass its text without it"
            elif len(response) > max_response_tokens:
                bad[number] = f"{name} has {len(response)} tokens, --max-response-tokens is {max_response_tokens}"
    for number, pair in pairs.items():
        if names and pair["chosen"] == pair["rejected"]:
            bad.setdefault(number, "chosen and rejected are the same: there is nothing to prefer")
    if bad and on_bad_row == "error":
        number = min(bad)
        others = f" ({len(bad)} rows of {len(rows)} are unusable; --on-bad-row skip leaves them out)"
        fail(f"{source}: row {number}: {bad[number]}{others}")
    if bad:
        print(f"{source}: {len(bad)} of {len(rows)} rows left out, the first being row {min(bad)}: {bad[min(bad)]}")
    if alone:
        print(f"{source}: {alone} responses encoded alone, their prompt's tokens change when a response follows")
    pairs = [pairs[number] for number in strings if number not in bad]
    return pairs or fail(f"{source}: no usable row")


def load_saved_pairs(source: str, rows: list[dict], tokenizer, max_prompt_tokens: int, max_response_tokens: int) -> list[dict]:
    """Preference pairs from saved ids; one that does not fit ends the program, since order and number are the point."""
    pairs, vocabulary = [], getattr(tokenizer, "rows", len(tokenizer))
    for number, row in enumerate(rows):
        parts = prompt, chosen, rejected = [row.get(f"{name}_ids") for name in ("prompt", "chosen", "rejected")]
        if not all(isinstance(part, list) and part and all(type(i) is int and i >= 0 for i in part) for part in parts):
            fail(f"{source}: row {number}: prompt_ids, chosen_ids and rejected_ids must be lists of ids, none of them empty")
        if max(prompt + chosen + rejected) >= vocabulary:
            fail(f"{source}: row {number}: has ids beyond the model's {vocabulary} tokens; it is another model's saved pairs")
        if len(prompt) > max_prompt_tokens or max(len(chosen), len(rejected)) > max_response_tokens:
            fail(f"{source}: row {number}: is longer than --max-prompt-tokens or --max-response-tokens; take those of its run")
        pair = {"prompt": Prompt(prompt), "chosen": chosen, "rejected": rejected}
        pairs.append({"row": number, **pair, "margin": row.get("margin")})
    for pair, text in zip(pairs, tokenizer.batch_decode([pair["prompt"] for pair in pairs])):
        pair["text"] = text
    return pairs


def pad(sequences: list[list[int]], tokenizer, device: str, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, W) ids, padded to the longest on the left or on the right, and a mask that is 1 where there is a token."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        columns = slice(width - len(sequence), None) if side == "left" else slice(len(sequence))
        ids[row, columns], mask[row, columns] = torch.tensor(sequence), 1
    return ids.to(device), mask.to(device)


class Batch(NamedTuple):
    """Prompts with their responses behind them."""

    ids: torch.Tensor  # (N, L) padded on the right
    mask: torch.Tensor  # (N, L) true at the tokens of the response, the end token included


def collate(prompts: list[list[int]], responses: list[list[int]], tokenizer, device: str) -> Batch:
    """Pad to the longest. Masks come from the lengths, never from comparing ids with the padding id."""
    ids, mask = pad([x + y for x, y in zip(prompts, responses)], tokenizer, device, "right")
    starts = torch.tensor([len(x) for x in prompts], device=device)
    return Batch(ids, (mask == 1) & (torch.arange(ids.shape[1], device=device) >= starts[:, None]))


def by_length(prompts: list, chosen: list, rejected: list, parts: int) -> list[list[int]]:
    """The numbers of the pairs in `parts` equal parts (the last may be smaller), short pairs first."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + max(len(chosen[i]), len(rejected[i])))
    size = -(-len(order) // parts)
    return [order[i : i + size] for i in range(0, len(order), size)]


# ------------------------------------------------------------------------------------------------------------- sampling


def attention(module, query, key, value, attention_mask=None, **options):
    """transformers' sdpa attention, (N, H, T, D) to (N, T, H, D), but where heads that share keys and values would cost more.

    Compiled, it would copy keys and values to all heads for every token: heads that share them are here rows of one matrix. In
    fp32 without a mask, the one kernel of a GPU that knows shared heads keeps T x T scores: here each head gets its copy.
    """
    rows, heads, tokens, _ = query.shape
    groups, kind = heads // key.shape[1], key.device.type
    if groups > 1 and tokens == 1 and torch.compiler.is_compiling():
        query = query.reshape(rows, key.shape[1], groups, -1)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=options.get("scaling"))
        return out.reshape(rows, 1, heads, -1), None
    if groups > 1 and attention_mask is None and kind == "cuda" and key.dtype == torch.float32:
        if not torch.is_autocast_enabled(kind):
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


class InPlaceLayer(StaticLayer):
    """Keys and values in memory that stays where it is, written at a column that the Decoder counts for all layers.

    They have the type that attention computes with: of an fp32 memory autocast would cast all, for every token.
    """

    def __init__(self, size: int, column: torch.Tensor):
        super().__init__(size)
        self.column = column

    def update(self, keys, values, *args, **options):
        for kept, new in ((self.keys, keys), (self.values, values)):
            kept.index_copy_(2, self.column, new.to(kept.dtype))
        return self.keys, self.values

    def get_seq_length(self):
        return self.column[0]


class Decoder:
    """Writes up to N responses behind prompts that were read, in memory that stays where it is.

    So a GPU can record a step as a graph, once, and replay it without Python for every token. The graph reads the weights
    where they are: training goes on under it. Prompts end at column `width` of the memory, and responses begin there.
    """

    def __init__(self, model, choose, rows: int, width: int, length: int, read: transformers.Cache):
        """Memory for `rows` responses of at most `length` tokens to prompts of `width`; read, choose: as in decoder_for."""
        self.model, self.choose, self.width, self.graph = model, choose, width, None
        kind, autocast = model.device.type, torch.is_autocast_enabled(model.device.type)
        products = [(name, part) for name, part in model.named_modules() if isinstance(part, (torch.nn.Linear, Conv1D))]
        weights = {f"{name}.{key}": weight for name, part in products for key, weight in part.named_parameters()}
        self.weights = weights if autocast else {}  # what autocast would cast for every token is cast once for every batch
        self.cast = {name: weight.to(torch.get_autocast_dtype(kind)) for name, weight in self.weights.items()}
        size = -(-(width + length) // 8) * 8  # a kernel would copy a mask of another size
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=size)
        self.column = torch.zeros(1, dtype=torch.long, device=model.device)  # of the memory: where the next token goes
        self.cache.layers = [InPlaceLayer(size, self.column) for _ in self.cache.layers]
        for layer, (keys, values, _) in zip(self.cache.layers, read):
            dtype = torch.get_autocast_dtype(kind) if autocast else keys.dtype
            layer.lazy_initialization(*(x[:1].to(dtype).expand(rows, -1, -1, -1) for x in (keys, values)))
        with model.device:
            self.t, self.tokens = torch.zeros(1, dtype=torch.long), torch.zeros(rows, length, dtype=torch.long)
            self.positions, self.uniforms = torch.zeros(rows, 1, dtype=torch.long), torch.zeros(rows, length)
            self.mask = torch.full((rows, size), -math.inf, dtype=dtype)  # 0 where there is a token: attention adds it
        if kind == "cuda" and length > 1:
            with torch.autocast(kind, enabled=autocast, cache_enabled=False):  # a replay is to cast the weights that it finds
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    self.step()  # warm up: --compile compiles
                torch.cuda.current_stream().wait_stream(side)
                self.graph = torch.cuda.CUDAGraph()
                torch._C._cuda_clearCublasWorkspaces()  # so that the graph's lies in its own memory, which nothing else frees
                with torch.cuda.graph(self.graph, stream=side):
                    self.step()
                torch._C._cuda_clearCublasWorkspaces()

    def step(self) -> None:
        """Every row's next token, from its token t; t counts on the device, where a graph can read it."""
        mask = self.mask.index_fill_(1, self.column, 0.0)
        options = {"attention_mask": mask[:, None, None], "position_ids": self.positions}
        inputs = self.tokens.index_select(1, self.t)
        out = functional_call(self.model, self.cast, inputs, options | {"past_key_values": self.cache}, tie_weights=False)
        self.positions.add_(1), self.column.add_(1)
        uniforms = self.uniforms.index_select(1, self.t.add_(1))
        self.tokens.index_copy_(1, self.t, self.choose(out.logits[:, -1], uniforms))

    def write(self, read: transformers.Cache, which, mask, uniforms, first, eos: int) -> torch.Tensor:
        """(N, T) tokens of N responses, arbitrary behind an end token.

        read: keys and values of (D, P) prompts, padded on the left, of which response n goes on from prompt which[n]. (N, P)
        mask: 1 where it has a token. (N, T) uniforms; (N, 1) first: the tokens that were already chosen.
        """
        rows, columns = slice(len(which)), slice(self.width - mask.shape[1], self.width)
        for layer, (keys, values, _) in zip(self.cache.layers, read):
            layer.keys[rows, :, columns], layer.values[rows, :, columns] = keys[which], values[which]
        for name, weight in self.weights.items():
            self.cast[name].copy_(weight)
        self.column.fill_(self.width), self.t.zero_()
        self.positions.zero_(), self.mask.fill_(-math.inf), self.tokens.fill_(eos)
        self.mask[rows, columns].masked_fill_(mask.bool(), 0.0)
        self.positions[rows], self.uniforms[rows], self.tokens[rows, :1] = mask.sum(1, keepdim=True), uniforms, first
        for t in range(1, self.tokens.shape[1]):
            self.graph.replay() if self.graph else self.step()
            if t % 16 == 0 and (self.tokens[rows, : t + 1] == eos).any(1).all():  # to look is to wait for the GPU
                break
        return self.tokens[rows]


def decoder_for(model, choose, shape: tuple[int, int], width: int, read: transformers.Cache) -> Decoder | None:
    """A Decoder for `shape` responses and tokens behind prompts of `width`, kept with the model; None: a plain loop serves.

    choose: (N, 1) tokens from (N, V) logits and (N, 1) uniforms. read: a cache of prompts, for its shapes. On a CPU the plain
    loop, which drops responses that ended with EOS, is the faster one; a compiled model takes the Decoder there too.
    """
    compiled = model._compiled_call_impl is not None
    if model.device.type == "cpu" and not compiled:
        return None
    if not hasattr(model, "decoders"):
        model.decoders = {} if can_be_recorded(model) else None
        if model.decoders is None:
            print(f"{type(model).__name__}: a decoding step cannot be recorded; it samples in a plain loop, which is slower")
            model._compiled_call_impl = None  # a cache that grows would be compiled anew for every token
    if model.decoders is None:
        return None
    key = 1 << (shape[0] - 1).bit_length(), shape[1], torch.is_autocast_enabled(model.device.type)
    if key not in model.decoders or model.decoders[key].width < width:
        # memory goes before there is more; what was compiled stays, a variant for each number of responses and width
        model.decoders.pop(key, None) if compiled else model.decoders.clear()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        model.decoders[key] = Decoder(model, choose, key[0], -(-width // 64) * 64, shape[1], read)
    return model.decoders[key]


def can_be_recorded(model) -> bool:
    """Whether a Decoder writes what the plain loop does: whole on one device, every layer with a plain static cache and fused
    attention, rotary positions that do not depend on the length, no experts, whose tokens are counted on the CPU,
    and no Falcon, whose attention copies numbers from there."""
    layers = transformers.StaticCache(config=model.config, max_cache_len=1).layers
    plain = model._can_compile_fullgraph and all(type(layer) is StaticLayer for layer in layers) and not sharded(model)
    longer = any(kind in str(getattr(model.config, "rope_parameters", None)) for kind in ("'dynamic'", "'longrope'"))
    other = any("Experts" in type(module).__name__ for module in model.modules()) or model.config.model_type == "falcon"
    return plain and model.config._attn_implementation == "sdpa" and not longer and not other


def sample_in_parts(
    sample, model, prompts: list, max_tokens: int, random: torch.Generator, tokenizer, width: int
) -> list[list[int]]:
    """A response to each of any number of prompts by a script's `sample`, `width` at a time; random: for their uniforms."""
    own = share(len(prompts))
    mine, uniforms = [prompts[i] for i in own], torch.rand(len(prompts), max_tokens, generator=random)[own]
    parts = [slice(i, i + width) for i in range(0, len(own), width)]
    responses = [y for part in parts for y in sample(model, mine[part], uniforms[part], tokenizer)]
    if model._compiled_call_impl is None and getattr(model, "decoders", None):  # training has use for the memory
        model.decoders.clear()
    return gather(responses, len(prompts))


# ---------------------------------------------------------------------------------------------------- preference models


@dataclass
class PreferenceModel:
    """A preference model: pairwise, r(x, y1, y2), or pointwise, s(x, y), as its config says."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    policy_tokenizer: transformers.PreTrainedTokenizerBase | None  # where it is another than the preference model's
    stored: dict | None = None  # scores of the baseline's responses, which every evaluation asks for

    @property
    def form(self) -> str:
        return getattr(self.model.config, "preference_form", "pointwise")


def load_preference_model(
    source: str | None, policy_tokenizer, device: str, prompt: int, response: int
) -> PreferenceModel | None:
    """A preference model of prepare/, or any reward model with one label (then pointwise); None stays None.

    prompt, response: the longest that it is to read, in tokens; of responses two at a time if it is pairwise.
    """
    if source is None:
        return None
    tokenizer = load_tokenizer(source)
    config = from_pretrained(transformers.AutoConfig, source, "preference model")
    tokens = prompt + response + (response + 2) * (getattr(config, "preference_form", None) == "pairwise")
    model = load_model(transformers.AutoModelForSequenceClassification, source, "preference model", device, tokens)
    if model.config.num_labels != 1:
        fail(f"{source}: a preference model has one label, this model has {model.config.num_labels}")
    check_vocabulary(source, model, tokenizer)
    same = tokenizer.get_vocab() == policy_tokenizer.get_vocab() and tokenizer.eos_token == policy_tokenizer.eos_token
    same &= tokenizer.chat_template in (None, policy_tokenizer.chat_template)
    same &= getattr(policy_tokenizer, "rows", 0) <= model.get_input_embeddings().weight.shape[0]  # ids that mean no token
    return PreferenceModel(model, tokenizer, None if same else policy_tokenizer)


def score(model, sequences: list[list[int]]) -> torch.Tensor:
    """(N,) one number for each sequence of ids, read off its last token.

    The last token is found by length: transformers' own forward compares ids with the padding id, and where that is the
    end token too, it would read a response that ended with EOS one token early.
    """
    lengths = torch.tensor([len(s) for s in sequences])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sequences], batch_first=True)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(model.device)
    if not hasattr(model, "score"):  # an encoder pools in its own way
        return model(ids.to(model.device), attention_mask=mask).logits.squeeze(-1).float()
    hidden = model.base_model(ids.to(model.device), attention_mask=mask, use_cache=False).last_hidden_state
    return model.score(hidden[torch.arange(len(ids)), lengths - 1]).squeeze(-1).float()


def sequences_to_score(form: str, eos: int, prompts: list, first: list, second: list) -> tuple[list, list]:
    """What a preference model reads to compare first with second: sequences a and b, to be scored and subtracted.

    Pointwise: x y1 and x y2. Pairwise: both responses behind the prompt, set apart by the end token, in both orders.
    """
    if form == "pairwise":
        first, second = (
            [y1 + [eos] + y2 + [eos] for y1, y2 in zip(first, second)],
            [y2 + [eos] + y1 + [eos] for y1, y2 in zip(first, second)],
        )
    return [x + y for x, y in zip(prompts, first)], [x + y for x, y in zip(prompts, second)]


@torch.no_grad()
def margin(
    preference_model: PreferenceModel, prompts: list, first: list, second: list, store_second: bool = False
) -> torch.Tensor:
    """(N,) how much the preference model prefers the first response: its sign decides labels, wins and accuracy.

    Pointwise s(x, y1) - s(x, y2); pairwise r(x, y1, y2) - r(x, y2, y1), both orders, against position bias (Appendix A.2 of
    the paper). Each distinct sequence is scored once and in one order of sequences, so that identical responses are a tie
    of exactly 0 and margin(y1, y2) == -margin(y2, y1). With store_second a pointwise preference model scores the second
    responses, always the same ones, only once.
    """
    if preference_model.policy_tokenizer is not None:  # the same texts in the preference model's own ids and chat template
        heads = preference_model.policy_tokenizer.batch_decode(
            prompts, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for i, prompt in enumerate(prompts):
            if preference_model.tokenizer.chat_template and getattr(prompt, "messages", None):
                try:
                    heads[i] = preference_model.tokenizer.apply_chat_template(
                        prompt.messages, add_generation_prompt=True, tokenize=False
                    )
                except Exception as error:  # whatever a template may raise
                    fail(f"the preference model's chat template refuses a prompt ({first_line(error)}): {prompt.messages}")
        first, second = (
            encode(preference_model.tokenizer, heads, *decode(preference_model.policy_tokenizer, prompts, y))
            for y in (first, second)
        )
        prompts, first, second = first[0], first[1], second[1]
    both = sequences_to_score(preference_model.form, preference_model.tokenizer.eos_token_id, prompts, first, second)
    longest = max(map(len, both[0] + both[1]))
    if longest > (limit := context_of(preference_model.model)):
        fail(f"a text has {longest} of the preference model's tokens, it reads {limit}; lower the --max-...-tokens")
    store_second &= preference_model.form == "pointwise"
    if store_second and preference_model.stored is None:
        preference_model.stored = score_all(preference_model, both[1])
    values = (
        score_all(preference_model, both[0]) | preference_model.stored
        if store_second
        else score_all(preference_model, both[0] + both[1])
    )
    return torch.tensor([values[tuple(a)] - values[tuple(b)] for a, b in zip(*both)])


def score_all(preference_model: PreferenceModel, sequences: list[list[int]]) -> dict[tuple, float]:
    """{sequence: its score, or the probability that the first response is better}, short ones first."""
    distinct = sorted({tuple(s) for s in sequences}, key=lambda s: (len(s), s))
    size = 32 if preference_model.model.device.type == "cpu" else 128  # at a time; what fits a CPU's cache is computed faster
    parts = [list(map(list, distinct[i : i + size])) for i in range(0, len(distinct), size)]
    values = torch.cat([score(preference_model.model, part) for part in parts])
    if not values.isfinite().all():
        fail(f"{preference_model.model.name_or_path}: gives a text a score that is no finite number; it cannot be used")
    return dict(zip(distinct, (values.sigmoid() if preference_model.form == "pairwise" else values).tolist()))


# ----------------------------------------------------------------------------------------------------------- evaluation


@dataclass
class Evaluation:
    """What a policy is measured on; the same in every run from one setup."""

    prompts: list[list[int]]  # ids: prompts of the training data, then held-out ones
    texts: list[str]  # the same as strings
    train_count: int  # so many of them are training prompts
    baseline: str  # "baseline", or "sft" where there is none
    baseline_responses: list[list[int]]  # to each prompt; the script samples those of sft
    pairs: list[dict]  # P preference pairs for the accuracy as a classifier
    reference_logprobs: torch.Tensor | None = None  # (P, 2) of chosen and rejected, filled in by the script


def load_evaluation(args, tokenizer, pairs: list[dict]) -> Evaluation:
    """Prompts and baseline responses stored with the baseline policy; without them, a fixed head of the data.

    pairs: the training pairs, which serve where there is no setup. Distinct prompts, at most --eval-prompts of each kind.
    """
    limits = args.max_prompt_tokens, args.max_response_tokens, args.on_bad_row
    own = setup_part(args, "d_golden")
    if own and own != args.dataset:
        pairs = load_pairs(own, tokenizer, *limits)
    known = pairs if "chosen" in pairs[0] else []  # prompts alone tell nothing of a policy as a classifier
    chosen_rows = random.Random(0).sample(known, min(args.eval_prompts, len(known)))
    chosen_rows.sort(key=lambda p: len(p["prompt"]) + max(len(p["chosen"]), len(p["rejected"])))  # less padding
    if args.baseline is None:
        distinct = list({p["text"]: p for p in pairs}.values())[: args.eval_prompts]
        if args.golden or getattr(args, "proxy", None):
            print(
                f"no baseline policy: win rates are against the reference's own samples on the first {len(distinct)} prompts"
            )
        prompts, texts = [p["prompt"] for p in distinct], [p["text"] for p in distinct]
        return Evaluation(prompts, texts, len(distinct), "sft", [], chosen_rows)
    source = str(Path(args.baseline, "responses.jsonl"))
    rows = load_rows(source)
    for number, row in enumerate(rows):
        if missing := [name for name in ("split", "prompt", "response", "finished") if row.get(name) is None]:
            fail(f"{source}: row {number} has no {missing[0]}; see docs/yours.md, Another baseline")
        if row["split"] not in ("train", "test") or not isinstance(row["finished"], bool):
            fail(f"{source}: row {number}: split must be train or test, and finished true or false")
        if not (isinstance(row["prompt"], str) and isinstance(row["response"], str) and row["prompt"].strip()):
            fail(f"{source}: row {number}: prompt and response must be strings, and the prompt not blank")
    kinds = [[r for r in rows if r["split"] == split][: args.eval_prompts] for split in ("train", "test")]
    if not kinds[0]:
        fail(f"{source}: has no row of the split train, whose prompts the win rate and the KL are measured on")
    rows = kinds[0] + kinds[1]
    texts = [r["prompt"] for r in rows]
    prompts, responses, _ = encode(tokenizer, texts, [r["response"] for r in rows], [r["finished"] for r in rows])
    if unknown := [x for x, y in zip(texts, map(unknown_ids(tokenizer).intersection, prompts)) if y]:
        fail(f"{source}: the prompt {unknown[0]!r} has a word that the tokenizer does not know")
    if not all(prompts):
        fail(f"{source}: the prompt {texts[prompts.index([])]!r} has no tokens")
    if (longest := max(map(len, prompts))) > args.max_prompt_tokens:
        fail(f"{source}: has a prompt of {longest} tokens, --max-prompt-tokens is {args.max_prompt_tokens}")
    if cut := sum(len(y) > args.max_response_tokens for y in responses):
        print(f"{source}: {cut} of {len(rows)} responses are longer than --max-response-tokens lets the policy write")
    prompts = [Prompt(ids) for ids in prompts]
    for prompt, row in zip(prompts, rows):
        prompt.messages = row.get("messages")
    return Evaluation(prompts, texts, len(kinds[0]), "baseline", responses, chosen_rows)


def summary(row: dict) -> str:
    """A row of evals.jsonl in a line to be read as the run goes on."""
    told = [f"step {row['step']}: KL {row['kl']:.2f} ± {row['kl_stderr']:.2f} nats"]
    for name, title in (("win_rate", "win rate"), ("proxy_win_rate", "by the proxy")):
        told += [f"{title} {row[name]:.3f} ± {row[f'{name}_stderr']:.3f}"] if row[name] is not None else []
    told += [f"accuracy {row['accuracy']:.3f}"] if row["accuracy"] is not None else []
    return ", ".join([*told, f"{row['response_length']:.1f} tokens a response"])


def mean_stderr(values: torch.Tensor, clusters: list) -> tuple[float, float]:
    """Mean of (N,) values and its standard error, values of one cluster (one prompt) counted as dependent."""
    values, names = values.cpu().double(), {c: i for i, c in enumerate(dict.fromkeys(map(str, clusters)))}
    index = torch.tensor([names[str(c)] for c in clusters])
    mean, count = values.mean(), len(names)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, index, values - mean)
    spread = sums.pow(2).sum() * count / max(count - 1, 1)
    return mean.item(), spread.sqrt().item() / len(values)


def wins(margins: torch.Tensor) -> torch.Tensor:
    """(N,) 1 where the margin is positive, 0 where negative, one half for a tie."""
    return (margins.cpu() > 0).double() + 0.5 * (margins.cpu() == 0).double()
