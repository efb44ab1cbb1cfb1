// "Find similar": the request, and its hits as pictures to click on.

import {small} from './cohort.js';
import {post, regionUrl} from './net.js';

const number = (value, digits) => value === null ? '–' : value.toFixed(digits);

export class Similar {
  // `fly` is called with a hit.
  constructor(fly) {
    this.fly = fly;
    this.section = document.getElementById('hits');
    this.found = document.getElementById('found');
    this.results = document.getElementById('results');
    this.files = document.getElementById('files');
    this.mpp = document.getElementById('mpp');
    document.getElementById('ask').addEventListener('click', () => this.upload());
    this.section.hidden = false;
  }

  async upload() {
    const pictures = await Promise.all(
      [...this.files.files].slice(0, 5).map(base64));
    await this.ask({pictures, mpp: Number(this.mpp.value)}, 'these pictures');
  }

  async ask(body, what) {
    this.section.hidden = false;
    this.results.replaceChildren();
    this.found.textContent = 'Searching …';
    this.found.classList.remove('warn');
    try {
      const {hits} = await post('/api/search', body);
      this.found.textContent = `${hits.length} places like ${what}, ` +
        'nearest first. z: standard deviations from random tiles; ' +
        'p: share of random tiles as near.';
      this.results.replaceChildren(...hits.map((hit, i) => this.card(hit, i)));
    } catch (error) {
      this.found.textContent = `No answer: ${error.message}`;
      this.found.classList.add('warn');
    }
  }

  card(hit, i) {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.className = 'card hit';
    button.disabled = !hit.key; // indexed, but not among the slides shown here
    if (hit.key) {
      const picture = document.createElement('img');
      picture.loading = 'lazy';
      picture.alt = '';
      picture.src = regionUrl(hit.key, [hit.x0, hit.y0, hit.w0, hit.h0]);
      button.append(picture);
    }
    button.append(`${i + 1}. ${hit.slide_id}`,
      small([hit.label, hit.cohort].filter(Boolean).join(' · ')),
      small(`d ${number(hit.distance, 3)} · z ${number(hit.z, 1)} · ` +
        `p ${number(hit.background_share, 4)}`));
    button.addEventListener('click', () => {
      for (const other of this.results.querySelectorAll('button')) {
        other.removeAttribute('aria-current');
      }
      button.setAttribute('aria-current', 'true');
      this.fly(hit);
    });
    item.append(button);
    return item;
  }
}

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = '';
  for (let i = 0; i < bytes.length; i += 32768) {
    text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  }
  return btoa(text);
}
