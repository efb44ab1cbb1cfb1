// The list of slides and its filters.

const MOST = 2000; // more are asked to be filtered

export class Cohort {
  constructor(slides, open) {
    this.slides = slides;
    this.open = open;
    this.find = document.getElementById('find');
    this.label = document.getElementById('label');
    this.split = document.getElementById('split');
    this.list = document.getElementById('slides');
    this.count = document.getElementById('count');
    const choices = (select, name) => {
      const values = [...new Set(slides.map((slide) => slide[name]))].sort();
      for (const value of values.filter(Boolean)) {
        select.append(new Option(value, value));
      }
      select.parentElement.hidden = values.filter(Boolean).length < 1;
      select.addEventListener('change', () => this.show());
    };
    choices(this.label, 'label');
    choices(this.split, 'split');
    this.find.addEventListener('input', () => this.show());
    this.show();
  }

  show() {
    const words = this.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.slides.filter((slide) => {
      const text = `${slide.id} ${slide.patient} ${slide.label}`.toLowerCase();
      return words.every((word) => text.includes(word)) &&
        (!this.label.value || slide.label === this.label.value) &&
        (!this.split.value || slide.split === this.split.value);
    });
    const more = found.length > MOST ? `, the first ${MOST} shown` : '';
    this.count.textContent =
      `${found.length} of ${this.slides.length} slides${more}`;
    this.list.replaceChildren(
      ...found.slice(0, MOST).map((slide) => this.card(slide)));
  }

  card(slide) {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.className = 'card';
    button.dataset.key = slide.key;
    const picture = document.createElement('img');
    picture.loading = 'lazy';
    picture.alt = '';
    picture.src = `/api/slides/${slide.key}/thumbnail`;
    picture.addEventListener('error', () => {
      picture.remove();
      button.append(small('cannot be read', 'warn'));
    });
    const words = [slide.patient !== slide.id ? slide.patient : '', slide.label];
    button.append(picture, slide.id, small(words.filter(Boolean).join(' · ')));
    button.addEventListener('click', () => this.open(slide.key));
    if (slide.key === this.current) button.setAttribute('aria-current', 'true');
    item.append(button);
    return item;
  }

  mark(key) {
    this.current = key;
    for (const button of this.list.querySelectorAll('button')) {
      if (button.dataset.key === key) button.setAttribute('aria-current', 'true');
      else button.removeAttribute('aria-current');
    }
  }
}

export function small(text, name = '') {
  const element = document.createElement('small');
  element.textContent = text;
  element.className = name;
  return element;
}
