"""Frames, sizes and times out of every kind of file."""

import fractions
import struct
import zlib

import av
import numpy as np
import pytest
import tifffile
from PIL import Image

from data_prep.files.errors import SlideError
from data_prep.series import files
from tests.data_prep.series import tiny_series


def all_of(path, one=False):
  header = files.inspect(str(path), one)
  wanted = list(range(header.frames))
  return header, list(files.read(str(path), wanted, one))


def code(path, one=False):
  with pytest.raises(SlideError) as caught:
    all_of(path, one)
  assert str(path) in caught.value.message
  return caught.value.error


@pytest.mark.parametrize(
  ("shape", "one", "want"),
  [
    ((5, 24, 32), False, (5, (24, 32), 1)),
    ((5, 24, 32, 2), False, (5, (24, 32), 2)),
    ((24, 32), False, (1, (24, 32), 1)),
    ((24, 32), True, (1, (24, 32), 1)),
    ((24, 32, 3), True, (1, (24, 32), 3)),
    ((0, 24, 32), False, (0, (24, 32), None)),
  ],
)
def test_arrays(tmp_path, shape, one, want):
  pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
  np.save(tmp_path / "a.npy", pixels)
  header, frames = all_of(tmp_path / "a.npy", one)
  assert (header.frames, header.size, header.seconds) == (*want[:2], None)
  assert {f.shape for f in frames} == ({(24, 32, want[2])} if frames else set())
  if frames:
    np.testing.assert_array_equal(np.stack(frames).ravel(), pixels.ravel())


def test_arrays_of_other_shapes_are_refused(tmp_path):
  path = tmp_path / "a.npy"
  np.save(path, np.zeros((24, 32, 3), np.uint8))
  assert code(path) == "bad_array"  # one colour picture, not 24 frames
  np.save(path, np.zeros((5, 24, 32), np.uint8))
  assert code(path, one=True) == "bad_array"
  np.save(path, np.zeros((2, 3, 4, 5, 1), np.uint8))
  assert code(path) == "bad_array"
  np.save(path, np.zeros((2, 24, 32, 5), np.uint8))
  assert code(path) == "too_many_channels"
  np.save(path, np.array(["a"]))
  assert code(path) == "bad_array"
  np.save(path, np.array([{}], dtype=object))
  assert code(path) == "damaged_file"


def test_pictures_keep_their_depth_and_channels(tmp_path):
  deep = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
  tiny_series.png(tmp_path / "deep.png", deep)
  np.testing.assert_array_equal(
    all_of(tmp_path / "deep.png")[1][0][..., 0], deep
  )
  stack = np.stack([deep, deep + 1, deep + 2])
  tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
  header, frames = all_of(tmp_path / "s.tif")
  assert (header.frames, header.size) == (3, (24, 32))
  np.testing.assert_array_equal(np.stack(frames)[..., 0], stack)
  assert code(tmp_path / "s.tif", one=True) == "not_one_picture"


def test_an_opaque_alpha_channel_is_no_channel(tmp_path):
  rgba = np.full((24, 32, 4), 255, np.uint8)
  rgba[..., :3] = tiny_series.frames(1, channels=3)[0]
  tiny_series.png(tmp_path / "a.png", rgba)
  np.testing.assert_array_equal(all_of(tmp_path / "a.png")[1][0], rgba[..., :3])
  rgba[0, 0, 3] = 0
  tiny_series.png(tmp_path / "a.png", rgba)
  shown = all_of(tmp_path / "a.png")[1][0]
  assert shown.shape == (24, 32, 3) and (shown[0, 0] == 255).all()
  np.save(tmp_path / "a.npy", rgba)  # an array does not say what it holds
  assert code(tmp_path / "a.npy", one=True) == "too_many_channels"


@pytest.mark.parametrize(
  ("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mjpeg")]
)
def test_video_frames_and_times(tmp_path, name, codec):
  pixels = tiny_series.frames(9, (32, 48), 3)
  tiny_series.video(tmp_path / name, pixels, codec, fps=12.5)
  header, frames = all_of(tmp_path / name)
  assert (header.frames, header.size) == (9, (32, 48))
  np.testing.assert_allclose(header.seconds, np.arange(9) / 12.5, atol=1e-3)
  got = np.stack(frames).astype(int)
  # B-frames come in another order than they are shown in.
  assert np.abs(got - pixels).mean() < 4
  (third,) = files.read(str(tmp_path / name), [3])
  np.testing.assert_array_equal(third, frames[3])


def test_video_of_varying_rate_has_its_own_times(tmp_path):
  steps = [0, 1, 4, 5, 9]
  pixels = tiny_series.frames(5, (32, 48), 3)
  path = tmp_path / "a.mkv"
  tiny_series.video(path, pixels, fps=10, times=steps)
  header = files.inspect(str(path))
  np.testing.assert_allclose(header.seconds, np.array(steps) / 10, atol=2e-3)


def test_videos_are_turned_as_players_show_them(tmp_path):
  """Red above as stored; a phone held upright writes a turn by 90 degrees."""
  pixels = np.full((4, 32, 48, 3), 40, np.uint8)
  pixels[:, :10] = 220, 30, 30
  for degrees, (rows, columns) in {
    0: (slice(0, 8), slice(None)),
    -90: (slice(None), slice(-8, None)),  # clockwise: red at the right
    180: (slice(-8, None), slice(None)),
    90: (slice(None), slice(0, 8)),
  }.items():
    path = tmp_path / f"{degrees}.mp4"
    tiny_series.video(path, pixels, rotation=degrees)
    header, frames = all_of(path)
    assert header.size == frames[0].shape[:2]
    assert header.size == ((48, 32) if degrees in (90, -90) else (32, 48))
    red = frames[0][..., 0].astype(int) - frames[0][..., 1]
    assert red[rows, columns].min() > 120, degrees
    assert (red > 100).mean() == pytest.approx(10 / 32, abs=0.05)


def test_video_pixels_that_are_no_squares(tmp_path):
  pixels = tiny_series.frames(3, (32, 48), 3)
  path = tmp_path / "a.mkv"
  tiny_series.video(path, pixels, aspect=fractions.Fraction(4, 3))
  header, frames = all_of(path)
  assert header.size == frames[0].shape[:2] == (32, 64)
  ramp = frames[2][16, :, 0].astype(int)
  assert np.abs(np.diff(ramp)).max() <= 3  # stretched, not cut or repeated


def test_dicom_pixels_that_are_no_squares(tmp_path):
  tiny_series.dicom(
    tmp_path / "a.dcm", tiny_series.frames(2), PixelAspectRatio=[2, 1]
  )
  header, frames = all_of(tmp_path / "a.dcm")
  assert header.size == frames[0].shape[:2] == (48, 32)


def test_damaged_files_are_told_from_good_ones(tmp_path):
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 255, (12, 64, 64, 3), np.uint8)
  tiny_series.video(tmp_path / "v.mp4", noise)
  good = (tmp_path / "v.mp4").read_bytes()
  cut, zeroed = good[: len(good) // 2], bytearray(good)
  middle = good.index(b"mdat") + len(good) // 3
  zeroed[middle : middle + 3000] = bytes(3000)
  for data in (cut, bytes(zeroed), b"hello"):
    (tmp_path / "v.mp4").write_bytes(data)
    assert code(tmp_path / "v.mp4") == "damaged_video"
  (tmp_path / "v.mp4").write_bytes(b"")
  assert code(tmp_path / "v.mp4") == "empty_file"
  assert code(tmp_path / "none.mp4") == "missing_file"
  (tmp_path / "a.xyz").write_bytes(b"hello")
  assert code(tmp_path / "a.xyz") == "unknown_kind"
  tiny_series.png(tmp_path / "a.png", noise[0])
  data = (tmp_path / "a.png").read_bytes()
  (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
  assert code(tmp_path / "a.png") == "damaged_file"


def test_a_jpeg_that_was_cut_is_damaged(tmp_path):
  import simplejpeg

  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  data = simplejpeg.encode_jpeg(noise)
  (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
  assert code(tmp_path / "a.jpg") == "damaged_file"


@pytest.mark.parametrize(
  ("tags", "want"),
  [
    ({"FrameTime": 40.0}, [0, 0.04, 0.08]),
    ({"CineRate": 50}, [0, 0.02, 0.04]),
    ({"RecommendedDisplayFrameRate": 10}, [0, 0.1, 0.2]),
    # Increments win over the mean, and their first is no time of its own.
    ({"FrameTimeVector": [0, 10, 30], "FrameTime": 20.0}, [0, 0.01, 0.04]),
    ({}, None),
  ],
)
def test_dicom_frame_times(tmp_path, tags, want):
  tiny_series.dicom(tmp_path / "a.dcm", tiny_series.frames(3), **tags)
  header, frames = all_of(tmp_path / "a.dcm")
  assert header.frames == len(frames) == 3
  if want is None:
    assert header.seconds is None
  else:
    np.testing.assert_allclose(header.seconds, want)


def test_dicom_values_are_modality_values(tmp_path):
  stored = tiny_series.frames(2).astype(np.int16) - 40
  path = tmp_path / "IM0001"  # files of scanners often have no extension
  tiny_series.dicom(path, stored, RescaleSlope=2, RescaleIntercept=-1000)
  frames = np.stack(all_of(path)[1])[..., 0]
  np.testing.assert_array_equal(frames, stored * 2.0 - 1000)
  tiny_series.dicom(
    path, tiny_series.frames(2), PhotometricInterpretation="MONOCHROME1"
  )
  frames = np.stack(all_of(path)[1])[..., 0]
  np.testing.assert_array_equal(frames, 255 - tiny_series.frames(2))
  assert frames.dtype == np.uint8


def test_the_real_ultrasound_files(real_data):
  """mp4 of a varying rate, and DICOM in YBR whose grey has to come out grey."""
  path = next((real_data / "video").glob("lung_us*.mp4"))
  header = files.inspect(str(path))
  assert (header.frames, header.size) == (164, (720, 1280))
  steps = np.diff(header.seconds)
  assert steps.min() > 0
  assert header.seconds[-1] == pytest.approx(163 / 16.45, rel=0.01)
  first, last = files.read(str(path), [20, 163])
  assert first.shape == (720, 1280, 3) and first.max() > 150
  assert not np.array_equal(first, last)
  header, frames = all_of(real_data / "video" / "examples_ybr_color.dcm")
  assert (header.frames, header.size) == (30, (240, 320))
  np.testing.assert_allclose(np.diff(header.seconds), 0.033333, rtol=1e-6)
  frames = np.stack(frames).astype(int)
  # YBR taken for RGB would have green and blue near 128.
  assert frames.mean() < 12
  assert np.abs(frames[..., 0] - frames[..., 2])[:, :200].mean() < 2


def test_a_cover_is_no_video(tmp_path):
  """Programs put a picture in front, as another stream."""
  pixels = np.zeros((3, 48, 64, 3), np.uint8)
  tiny_series.video(tmp_path / "v.mp4", pixels)
  tiny_series.video(tmp_path / "c.avi", pixels[:1, :32, :32], "mjpeg")
  path = tmp_path / "a.mkv"
  with (
    av.open(str(path), "w") as out,
    av.open(str(tmp_path / "c.avi")) as cover,
    av.open(str(tmp_path / "v.mp4")) as video,
  ):
    streams = [
      out.add_stream_from_template(one.streams.video[0])
      for one in (cover, video)
    ]
    streams[0].disposition = av.stream.Disposition.attached_pic
    for source, stream in zip((cover, video), streams, strict=True):
      for packet in source.demux():
        if packet.dts is not None:
          packet.stream = stream
          out.mux(packet)
  header, frames = all_of(path)
  assert (header.frames, header.size) == (3, (48, 64))
  assert {frame.shape for frame in frames} == {(48, 64, 3)}


def test_pages_along_two_axes_are_no_frames(tmp_path):
  path = tmp_path / "a.tif"
  pixels = np.zeros((4, 3, 24, 32), np.uint8)
  tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TCYX"})
  assert code(path) == "several_axes"
  tifffile.imwrite(path, pixels[:, 0], imagej=True, metadata={"axes": "TYX"})
  assert all_of(path)[0].frames == 4


def _encode(path, pictures, codec, kind, **options):
  """Encodes pictures [h, w, c] in a pixel format that keeps them."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25, options=options)
    stream.height, stream.width = pictures[0].shape[:2]
    stream.pix_fmt = kind
    for pixels in pictures:
      source = "rgba" if pixels.shape[2] == 4 else "rgb24"
      frame = av.VideoFrame.from_ndarray(pixels, format=source)
      container.mux(stream.encode(frame.reformat(format=kind)))
    container.mux(stream.encode())


def test_what_is_transparent_in_a_video_is_white(tmp_path):
  pixels = np.full((24, 32, 4), 100, np.uint8)
  pixels[..., 3] = 255
  pixels[:12, :16, 3] = 0
  _encode(tmp_path / "a.mkv", [pixels] * 3, "ffv1", "bgra")
  header, frames = all_of(tmp_path / "a.mkv")
  assert header.frames == len(frames) == 3
  want = np.full((24, 32, 3), 100, np.uint8)
  want[:12, :16] = 255
  np.testing.assert_array_equal(frames[2], want)


def test_fields_of_interlaced_videos_become_one_picture(tmp_path):
  """Rows that were taken at another time do not show as a comb."""
  pixels = np.full((48, 64, 3), 40, np.uint8)
  pixels[::2] = 200
  options = {"flags": "+ildct+ilme"}
  _encode(tmp_path / "a.mpg", [pixels] * 5, "mpeg2video", "yuv420p", **options)
  header, frames = all_of(tmp_path / "a.mpg")
  assert header.frames == len(frames) == 5
  inside = frames[2][8:-8, 8:-8].astype(int)
  assert np.abs(np.diff(inside, axis=0)).max() < 20
  # One that is not interlaced is left as it is.
  _encode(tmp_path / "b.mpg", [pixels] * 5, "mpeg2video", "yuv420p")
  inside = all_of(tmp_path / "b.mpg")[1][2][8:-8, 8:-8].astype(int)
  assert np.abs(np.diff(inside, axis=0)).max() > 100


def test_pictures_that_move_and_sizes_that_no_memory_has(tmp_path):
  shots = [Image.fromarray(p) for p in tiny_series.frames(3, channels=3)]
  shots[0].save(tmp_path / "a.png", save_all=True, append_images=shots[1:])
  assert code(tmp_path / "a.png") == "not_one_picture"
  shots[0].save(tmp_path / "b.png")
  data = bytearray((tmp_path / "b.png").read_bytes())
  data[16:24] = struct.pack(">II", 30_000, 30_000)  # of IHDR, with its sum
  data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  (tmp_path / "b.png").write_bytes(data)
  with pytest.raises(SlideError, match="30000 x 30000 px, more than"):
    list(files.read(str(tmp_path / "b.png"), [0], one=True))
