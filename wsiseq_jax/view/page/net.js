// Requests to this server, and how their failures are told.

const REASONS = {
  damaged_tile: 'the file is damaged here',
  unsupported_format: 'no known slide format',
  unreadable: 'the file cannot be read',
  missing_file: 'the file is gone',
  mpp_out_of_range: 'its scale is not a microscope’s',
  mpp_anisotropic: 'its pixels are not square',
};

export async function ask(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) {
    let said = `${answer.status}`;
    try {
      said = (await answer.json()).error;
    } catch { /* an answer that is no JSON has no words for us */ }
    throw new Error(REASONS[said] ?? said);
  }
  return answer;
}

export async function json(path) {
  return (await ask(path)).json();
}

export async function post(path, body) {
  const headers = {'content-type': 'application/json'};
  const options = {method: 'POST', headers, body: JSON.stringify(body)};
  return (await ask(path, options)).json();
}

export function regionUrl(key, [x, y, w, h]) {
  const round = (v) => (Math.round(v * 100) / 100).toFixed(2);
  return `/api/slides/${key}/region?x=${round(x)}&y=${round(y)}` +
    `&w=${round(Math.max(1, w))}&h=${round(Math.max(1, h))}`;
}
