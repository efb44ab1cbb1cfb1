"""What columns of tables are called: one list for every reader."""

import re
import unicodedata
from collections.abc import Sequence

# Without case, blanks and marks; the first name that is there counts. A patient
# may have several cases.
ALIASES = {
  "slide_id": (
    *("slide_id", "slide", "slide_name", "image_id", "image_name", "wsi_id"),
    *("slide_submitter_id", "slide_no", "slide_nr", "slide_number", "id_slide"),
    *("wsi_name", "scan_id", "scan_name", "präparat", "präparat_id"),
    *("präparatnummer", "objektträger", "schnitt_id", "id_lame"),
    *("vetrino", "lámina", "切片"),
  ),
  "series_id": (
    *("series_id", "series", "sequence_id", "id", "eye_id", "video_id", "eid"),
    *("subject_id", "subject"),
  ),
  "patient_id": (
    *("patient_id", "patient", "patient_no", "patient_nr", "patient_number"),
    *("patient_code", "patient_name", "patient_key", "patient_identifier"),
    *("patients_id", "id_patient", "n_patient", "num_patient", "no_patient"),
    *("numéro_patient", "numéro_de_patient", "patienten_id", "patienten_nr"),
    *("patientennummer", "patient_nummer", "patientnummer", "patienten_code"),
    *("paciente", "paciente_id", "id_paciente", "paziente", "id_paziente"),
    *("paziente_id", "患者", "患者id", "病人id"),
    *("pat_id", "pat_no", "pat_nr", "pid", "pt_id", "person_id"),
    *("subject_id", "subject", "subject_no", "subject_nr", "subject_number"),
    *("participant_id", "participant", "donor_id", "donor", "individual_id"),
    *("bcr_patient_barcode", "case_submitter_id", "case_id", "case", "case_no"),
    *("case_nr", "case_number", "id_case", "mrn", "eid", "fall_id", "fall_nr"),
    *("fallnummer", "caso", "id_caso", "id_cas"),
  ),
  "file": (
    *("filename", "wsi", "file", "files", "path", "filepath", "slide_path"),
    *("slide_file", "wsi_path", "image_filename", "image_path", "image_file"),
    *("image", "folder", "full_path", "slide_filename", "wsi_filename"),
    *("wsi_file", "dateiname", "datei", "fichier", "archivo"),
  ),
  "label": ("label", "labels"),
  "mpp": (
    *("mpp", "microns_per_pixel", "um_per_px", "um_per_pixel", "µm_per_px"),
    *("µm_per_pixel", "um_px", "µm_px", "mpp_um", "mpp_µm", "mpp_x"),
    *("pixel_size", "pixel_size_um", "pixel_size_µm", "pixelgröße"),
  ),
  "split": ("split", "subset"),
  "mask": ("mask", "mask_path", "mask_file"),
  "points": ("points", "points_file", "point_file", "clicks"),
  "process": ("process",),
  "time": ("time", "year", "years", "time_years", "time_s", "seconds", "frame"),
  "times": ("times",),
  "fps": ("fps", "frame_rate"),
  "history": ("scan_history",),
  "video": ("video",),
}
# What a bracket behind the name may say; time has a unit of its own.
_WITH_BRACKETS = ("slide_id", "patient_id", "file", "label", "mpp", "split")
_BRACKET = re.compile(r"(.+?)\s*[(\[](.*)[)\]]\s*")
_NOT_UM = re.compile(r"(nm|mm|cm|m|in|inch|inches|dpi|ppi|px)(/?(px|pixel))?")
_OWNERS: dict[str, list[str]] = {}
for _key, _names in ALIASES.items():
  for _name in _names:
    _OWNERS.setdefault(_name, []).append(_key)


def plain(name: str) -> str:
  """What the spellings of a column's name share.

  Example:
    >>> plain("Patient ID"), plain("patient-id"), plain("PATIENT_ID")
    ('patientid', 'patientid', 'patientid')
  """
  name = unicodedata.normalize("NFKC", name).casefold()
  return re.sub(r"[\W_]+", "", name)


def find(heading: Sequence[str], key: str) -> list[str]:
  """The columns of a heading that are called as a key of `ALIASES` is.

  Args:
    heading: names of columns.
    key: what is looked for.

  Returns:
    None, one, or several that differ in spelling alone.

  Raises:
    ValueError: it is in a unit that is not wanted.

  Example:
    >>> find(["Slide", "MPP (µm)", "label"], "mpp"), find(["id"], "slide_id")
    (['MPP (µm)'], [])
  """
  names = [n for n in heading if key in _OWNERS.get(n.lower(), (key,))]
  found = _called(names, {name: name for name in names}, key)
  if found or key not in _WITH_BRACKETS:
    return found
  parts = {n: m for n in names if (m := _BRACKET.fullmatch(n))}
  found = _called(list(parts), {n: m[1] for n, m in parts.items()}, key)
  for name in found:
    unit = parts[name][2].strip().lower()
    if key == "mpp" and _NOT_UM.fullmatch(unit):
      raise ValueError(f"column {name!r}: give the scale in um per pixel")
  return found


def _called(names: Sequence[str], core: dict[str, str], key: str) -> list[str]:
  """The names whose core is the first alias that is there."""
  for alias in ALIASES[key]:
    if found := [n for n in names if plain(core[n]) == plain(alias)]:
      return found
  return []
