"""The settings of small preparations."""

from configs import prep_wsi


def config_of(slides, out, **changes):
  config = prep_wsi.get_config("smoke").unlock()
  config.slides, config.out, config.workers = str(slides), str(out), 0
  config.sequence.max_centres = 2
  for key, value in changes.items():
    config[key] = value
  return config.to_dict()
