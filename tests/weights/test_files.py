"""Files of weights: where they are, what is read, and what is refused."""

import sys
import types

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants, errors
from safetensors import flax as safetensors_flax
from safetensors import numpy as safetensors

from wsiseq_jax.weights import files

KEY = "config.encoder.weights"


def test_files_that_are_no_weights(tmp_path):
  broken = tmp_path / "c.safetensors"
  broken.write_bytes(b"nothing")
  with pytest.raises(ValueError, match="c.safetensors is damaged"):
    files.read(broken, KEY)
  with pytest.raises(ValueError, match="encoder.weights = .*no such file"):
    files.read(tmp_path / "none.pth", KEY)
  with pytest.raises(ValueError, match="encoder.weights = .*no such file"):
    files.read(tmp_path, KEY)
  (tmp_path / "a.onnx").write_bytes(b"")
  with pytest.raises(ValueError, match="must end in .safetensors, .pth"):
    files.read(tmp_path / "a.onnx", KEY)


def test_folders_and_bfloat16_safetensors_are_read(tmp_path):
  safetensors_flax.save_file(
    {"a": jnp.array([0.5, 3.0], jnp.bfloat16)}, tmp_path / "model.safetensors"
  )
  found = files.read(tmp_path, KEY)["a"]
  assert found.astype(np.float32).tolist() == [0.5, 3.0]


# Files of PyTorch; a module of a few lines in its place.


class Tensor:
  """As PyTorch's: `numpy` is for detached tensors of NumPy's types alone."""

  def __init__(self, *values, done=frozenset()):
    self.values, self.done = values, done

  def detach(self):
    return Tensor(*self.values, done=self.done | {"detach"})

  def float(self):
    return Tensor(*self.values, done=self.done | {"float"})

  def numpy(self):
    assert self.done == {"detach", "float"}
    return np.array(self.values, np.float32)


@pytest.fixture
def torch(monkeypatch, tmp_path):
  """PyTorch, and a file of it; `torch.content` is what it holds."""
  (tmp_path / "a.pth").write_bytes(b"")

  def load(path, map_location, weights_only):
    assert weights_only and map_location == "cpu"
    if isinstance(fake.content, Exception):
      raise fake.content
    return fake.content

  fake = types.SimpleNamespace(load=load, content={})
  monkeypatch.setitem(sys.modules, "torch", fake)
  return fake


@pytest.mark.parametrize("part", ["", "state_dict", "model", "teacher"])
def test_torch_reads_its_own_files(torch, tmp_path, part):
  state = {"a": Tensor(1, 2)}
  torch.content = {part: state, "epoch": 3} if part else state
  assert files.read(tmp_path / "a.pth", KEY)["a"].tolist() == [1.0, 2.0]
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  assert list(files.read(tmp_path, KEY)) == ["a"]


def test_torch_files_that_hold_no_weights(torch, tmp_path):
  torch.content = {"epoch": 3}
  with pytest.raises(ValueError, match="no state dict: a dict of .'epoch'"):
    files.read(tmp_path / "a.pth", KEY)
  torch.content = RuntimeError("Unsupported global: posix.system")
  with pytest.raises(ValueError, match="more than tensors .*posix.system"):
    files.read(tmp_path / "a.pth", KEY)


def test_without_torch_it_is_said_how_to_convert(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  (tmp_path / "a.pth").write_bytes(b"")
  with pytest.raises(ValueError) as error:
    files.read(tmp_path / "a.pth", KEY)
  text = str(error.value)
  assert 'torch.load("a.pth", "cpu", weights_only=True)' in text
  assert "save_file" in text and '"a.safetensors"' in text


# Hugging Face.


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """Two revisions of a repository, as `huggingface_hub` lays them out."""
  repo = tmp_path / "models--lab--vit"
  for name, commit, value in (("main", "1" * 40, 1.0), ("v2", "2" * 40, 2.0)):
    folder = repo / "snapshots" / commit
    folder.mkdir(parents=True)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / name).write_text(commit)
    tensors = {"a": np.array([value])}
    safetensors.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
  (folder / "ema").mkdir()
  safetensors.save_file({"a": np.array([3.0])}, folder / "ema/x.safetensors")
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  return tmp_path


@pytest.mark.parametrize(
  "place, value",
  [
    ("hf:lab/vit", 1.0),
    ("hf:lab/vit/model.safetensors", 1.0),
    ("hf:lab/vit@v2", 2.0),
    (f"hf:lab/vit@{'2' * 40}", 2.0),
    ("hf:lab/vit@v2/ema/x.safetensors", 3.0),
  ],
)
def test_hugging_face_weights_come_from_the_cache(cache, place, value):
  assert files.read(place, KEY)["a"].tolist() == [value]


def test_files_beside_the_weights_are_fetched_too(cache):
  found = files.find("hf:lab/vit@v2", KEY, "config.json")
  assert found.with_name("config.json").read_text() == "{}"
  with pytest.raises(ValueError, match="init_from = 'hf:lab/vit'.*not in the"):
    files.find("hf:lab/vit", "config.model.init_from", "x.json")


@pytest.mark.parametrize(
  "place", ["hf:lab/none", "hf:lab/vit@v3", "hf:lab/vit/other.safetensors"]
)
def test_offline_what_is_not_in_the_cache_is_said_to_be(cache, place):
  with pytest.raises(ValueError) as error:
    files.read(place, KEY)
  text = str(error.value)
  assert f"{KEY} = {place!r}" in text and str(cache) in text
  assert "HF_HUB_OFFLINE" in text and "hf download lab/" in text


@pytest.mark.parametrize(
  "kind, words",
  [
    ("GatedRepoError", "lab/vit is gated: accept its terms.*HF_TOKEN"),
    ("RepositoryNotFoundError", "no repository lab/vit, or it is private"),
    ("RevisionNotFoundError", "lab/vit has no revision 'v9'"),
    ("RemoteEntryNotFoundError", "lab/vit has no model.safetensors nor pyt"),
    ("HfHubHTTPError", r"cannot be fetched \(HfHubHTTPError: told\)"),
  ],
)
def test_refusals_of_hugging_face_are_explained(monkeypatch, kind, words):
  response = types.SimpleNamespace(headers={}, request=None)

  def refuse(repo, name, revision):
    raise getattr(errors, kind)("told", response=response)

  monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
  with pytest.raises(ValueError, match=words):
    files.read("hf:lab/vit@v9", KEY)


@pytest.mark.parametrize("place", ["hf:vit", "hf:lab/vit@", "hf:"])
def test_places_at_hugging_face_that_cannot_be(place):
  with pytest.raises(ValueError, match="must be hf:owner/name"):
    files.read(place, KEY)
