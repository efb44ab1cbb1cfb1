"""Files under the names of slides, and what was made of them."""

TIFF = b"II*\0rest"


def touch(folder, *names, content=TIFF):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def ids_of(slides):
  return [slide.slide_id for slide in slides]


def rows_of(errors):
  return [(error.slide, error.error) for error in errors]


def write_table(path, text):
  path.write_text(text)
  return path
