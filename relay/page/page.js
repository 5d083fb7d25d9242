// The status page: asks status.json every two seconds and shows what it says. What it draws of the
// time before it was opened comes from history.json. Texts come from collectors and clients, so
// they only ever enter the page as text (textContent), never as markup.
'use strict';

const POLL = 2000; // ms between two questions
const LIMIT = 5000; // ms that an answer may take
const RATE = 10; // s over which the rates in figures are measured
const SVG = 'http://www.w3.org/2000/svg';

const REASONS = {
  excluded_url: 'requests to excluded URLs',
  not_included_url: 'requests to URLs that are not included',
  subtree: 'spans below such requests',
  send_receive: 'ASGI send and receive spans',
  sampled_out: 'traces that sampling leaves out',
  disabled: 'switched off by a setting',
  queue_full: 'the ring was full: the oldest made way',
  queue_bytes: 'the ring was full by bytes: the oldest made way',
  rejected: 'the collector refused them for good',
  malformed: 'they do not parse, so the collector refused them',
  partial_success: 'the collector took the batch without them',
  too_large: 'single items larger than the collector takes',
  timeout: 'the collector never answered for these, but for others',
  unimplemented: 'the collector does not take this signal',
  shutdown: 'not sent before the shutdown limit',
};

const state = {
  status: null, // the latest answer
  samples: [], // [{at, signals: {name: {field: value}}}], oldest first
  interval: 5,
  span: 600,
  recent: [], // the latest answers, for rates
  silentSince: null, // when the relay was first not reached
  cards: new Map(),
  shown: new Map(), // what tables show, so that they are built anew only when it changed
};

// ------------------------------------------------------------------------------- small things

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const whole = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const fine = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

const count = (value) => whole.format(value);
const rate = (value) => (value >= 1000 ? short.format(value) : fine.format(value));
const percent = (value) => `${fine.format(Math.min(value, 1) * 100)} %`;
const sum = (counts) => Object.values(counts).reduce((total, value) => total + value, 0);

function bytes(value) {
  for (const [unit, size] of [['GiB', 2 ** 30], ['MiB', 2 ** 20], ['KiB', 2 ** 10]]) {
    if (value >= size) return `${fine.format(value / size)} ${unit}`;
  }
  return `${count(value)} B`;
}

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function moment(at) {
  const when = new Date(at * 1000);
  const time = when.toLocaleTimeString('en-GB');
  const today = new Date().toDateString() === when.toDateString();
  const date = [when.getFullYear(), when.getMonth() + 1, when.getDate()];
  return today ? time : `${date.map((part) => String(part).padStart(2, '0')).join('-')} ${time}`;
}

const listed = (names) =>
  names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;

// ------------------------------------------------------------------------------- asking

async function ask(path) {
  const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(LIMIT) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function loadHistory() {
  const found = await ask('history.json');
  state.interval = found.interval;
  state.span = found.span;
  state.samples = found.samples.map(({ at, signals }) => ({
    at,
    signals: Object.fromEntries(
      Object.entries(signals).map(([name, row]) => [
        name,
        Object.fromEntries(found.fields.map((field, index) => [field, row[index]])),
      ]),
    ),
  }));
}

async function poll() {
  try {
    const status = await ask('status.json');
    const before = state.status;
    const gap = before === null ? Infinity : status.now - before.now;
    if (before === null || before.started_at !== status.started_at || gap > 3 * state.interval) {
      state.recent = []; // opened, restarted, or looked away: what was missed is in the history
      await loadHistory();
    }
    state.status = status;
    state.silentSince = null;
    remember(status);
  } catch {
    state.silentSince ??= Date.now() / 1000;
  }
  render();
}

function remember(status) {
  state.recent.push(status);
  while (state.recent.length > 2 && status.now - state.recent[1].now >= RATE) state.recent.shift();
  const last = state.samples.at(-1);
  // A little early is no matter: the timers of page and relay do not run in step.
  if (last === undefined || status.now - last.at >= state.interval - 0.5) {
    state.samples.push({ at: status.now, signals: mapSignals(status, sample) });
  }
  while (state.samples.length && state.samples[0].at < status.now - state.span - state.interval) {
    state.samples.shift();
  }
}

function mapSignals(status, convert) {
  return Object.fromEntries(
    Object.entries(status.signals).map(([name, signal]) => [name, convert(signal)]),
  );
}

function sample(signal) {
  return {
    received: signal.received,
    filtered: sum(signal.filtered),
    dropped: sum(signal.dropped),
    exported: signal.exported,
    waiting: signal.queue.items + signal.in_flight,
    fill: fullness(signal.queue),
    up: signal.collector.up,
  };
}

const fullness = (queue) =>
  Math.max(queue.items / queue.capacity_items, queue.bytes / queue.capacity_bytes);

// The page asks again only when the answer is there, and not while nobody looks at it.
async function run() {
  await poll();
  setTimeout(() => {
    if (!document.hidden) run();
    else document.addEventListener('visibilitychange', run, { once: true });
  }, POLL);
}

// ------------------------------------------------------------------------------- showing

function render() {
  const { status, silentSince } = state;
  document.body.toggleAttribute('data-stale', silentSince !== null);
  renderBanner();
  if (status === null) return;
  say(byId('version'), status.version);
  say(
    byId('about'),
    `${location.host} · started ${moment(status.started_at)} · up ${duration(
      status.now - status.started_at,
    )} · ${status.ready ? 'taking telemetry' : 'NOT taking telemetry'} · as of ${moment(status.now)}`,
  );
  const names = Object.keys(status.signals);
  const busy = names.filter((name) => isBusy(status.signals[name]));
  for (const name of busy) card(name).update(status.signals[name]);
  const idle = names.filter((name) => !busy.includes(name));
  say(byId('idle'), idle.length ? `Nothing received yet: ${listed(idle)}.` : '');
  renderLosses(status, names);
  renderErrors(status, names);
  renderWhere(status, names);
  renderConfiguration(status);
}

const isBusy = (signal) =>
  signal.received > 0 || signal.collector.up !== null || sum(signal.refused ?? {}) > 0;

function renderBanner() {
  const { kind, mark, headline, detail } = verdict();
  const banner = byId('banner');
  banner.dataset.state = kind;
  say(byId('mark'), mark);
  // A live region: its text changes with the state only, not with every second.
  say(byId('headline'), headline);
  say(byId('detail'), detail);
  document.title = `${mark} ${headline} – otlp-relay`;
}

function verdict() {
  const { status, silentSince } = state;
  if (silentSince !== null) {
    const last = status === null ? '' : ' What is shown below is from then.';
    return {
      kind: 'gone',
      mark: '?',
      headline: 'The relay does not answer',
      detail:
        `Since ${moment(silentSince)}: it was stopped, or the way to it is cut.${last}` +
        ' This page goes on asking.',
    };
  }
  if (status === null) return { kind: 'unknown', mark: '…', headline: 'Asking the relay …', detail: '' };
  if (!status.ready) {
    return {
      kind: 'down',
      mark: '✕',
      headline: 'The relay is not ready',
      detail: 'It is starting or stopping; requests may be refused.',
    };
  }
  const signals = Object.entries(status.signals);
  const down = signals.filter(([, signal]) => signal.collector.up === false);
  const up = signals.filter(([, signal]) => signal.collector.up === true);
  if (down.length) return outage(down, up);
  if (up.length) return healthy(status, up);
  const any = signals.some(([, signal]) => signal.received > 0);
  return {
    kind: 'unknown',
    mark: '–',
    headline: any ? 'Nothing exported yet' : 'Nothing received yet',
    detail: any
      ? 'What was received waits for its first batch, or was removed by the settings.'
      : `Point the service at this relay: ${listeners(status)}.`,
  };
}

function outage(down, up) {
  const names = listed(down.map(([name]) => name));
  const longest = Math.max(...down.map(([, signal]) => signal.collector.outage_seconds));
  const error = down
    .flatMap(([, signal]) => signal.errors)
    .reduce((latest, each) => (latest === null || each.at > latest.at ? each : latest), null);
  const ring = down
    .map(([name, signal]) => `${name} ${percent(fullness(signal.queue))}`)
    .join(', ');
  return {
    kind: 'down',
    mark: '✕',
    headline: up.length ? `Collector down for ${names}` : 'Collector down',
    detail:
      `Since ${moment(state.status.now - longest)}, for ${duration(longest)}. ` +
      (error === null ? '' : `Last: ${error.code}${error.message ? `, ${error.message}` : ''}. `) +
      `The ring keeps the newest (${ring}) and the relay goes on trying.`,
  };
}

function healthy(status, up) {
  const ended = up
    .map(([name, signal]) => ({ name, ...signal.last_outage }))
    .filter((each) => each.ended_at !== undefined)
    .sort((one, other) => other.ended_at - one.ended_at)[0];
  const latest = Math.max(...up.map(([, signal]) => signal.collector.last_success));
  const since =
    ended === undefined
      ? 'No outage since the relay was started. '
      : `Since ${moment(ended.ended_at)}, after ${duration(ended.seconds)} without ` +
        `(${count(ended.lost)} items of ${ended.name} lost). `;
  return {
    kind: 'up',
    mark: '✓',
    headline: 'Collector up',
    detail: `${since}Last accepted ${duration(status.now - latest)} ago.`,
  };
}

const listeners = (status) =>
  Object.entries(status.listening)
    .filter(([name]) => name !== 'admin')
    .map(([name, addresses]) => `${name} on ${listed(addresses)}`)
    .join(', ');

// ------------------------------------------------------------------------------- one signal

function card(name) {
  if (!state.cards.has(name)) {
    const made = new Card(name);
    state.cards.set(name, made);
    const order = Object.keys(state.status.signals);
    const after = [...state.cards.values()].find(
      (other) => order.indexOf(other.name) > order.indexOf(name),
    );
    byId('signals').insertBefore(made.root, after ? after.root : null);
  }
  return state.cards.get(name);
}

class Card {
  constructor(name) {
    this.name = name;
    this.figures = new Map();
    this.state = element('span', { class: 'badge' });
    const title = element('h3', { id: `signal-${name}` }, name);
    this.list = element('dl', { class: 'figures' });
    this.bar = drawn('rect', { class: 'bar-fill', height: 8, width: 0 });
    const bar = drawn(
      'svg',
      { class: 'bar', viewBox: '0 0 100 8', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      drawn('rect', { class: 'bar-back', width: 100, height: 8 }),
      this.bar,
    );
    this.rates = new Chart(`${name}: items per second`, [
      { key: 'in', label: 'in', style: 'in' },
      { key: 'out', label: 'out', style: 'out' },
      { key: 'lost', label: 'lost', style: 'lost' },
    ]);
    this.ring = new Chart(`${name}: ring`, [{ key: 'fill', label: 'fill', style: 'ring' }], 1);
    this.table = element('div');
    this.details = element(
      'details',
      {},
      element('summary', {}, 'The last ten minutes as a table'),
      this.table,
    );
    this.details.addEventListener('toggle', () => this.renderTable());
    this.root = element(
      'article',
      { class: 'card', 'aria-labelledby': `signal-${name}` },
      element('div', { class: 'card-head' }, title, this.state),
      this.list,
      bar,
      element('div', { class: 'charts' }, this.rates.root, this.ring.root),
      this.details,
    );
  }

  figure(label, value) {
    if (!this.figures.has(label)) {
      const found = element('dd');
      this.figures.set(label, found);
      this.list.append(element('div', {}, element('dt', {}, label), found));
    }
    say(this.figures.get(label), value);
  }

  update(signal) {
    const { queue } = signal;
    const full = fullness(queue);
    const { up } = signal.collector;
    const lost = sum(signal.dropped);
    this.state.dataset.state = up === null ? 'unknown' : up ? 'up' : 'down';
    say(this.state, up === null ? '– not tried yet' : up ? '✓ up' : '✕ down');
    const rates = this.currentRates();
    this.figure('in', `${rate(rates.in)} /s`);
    this.figure('out', `${rate(rates.out)} /s`);
    this.figure('ring', `${percent(full)} full`);
    this.figure(
      'waiting',
      `${count(queue.items)} of ${count(queue.capacity_items)}, ${bytes(queue.bytes)}`,
    );
    this.figure('oldest', queue.items ? duration(queue.oldest_age_seconds) : '–');
    this.figure('under way', count(signal.in_flight));
    this.figure('received', count(signal.received));
    this.figure('exported', count(signal.exported));
    this.figure('filtered', count(sum(signal.filtered)));
    this.figure('lost', count(lost));
    this.figures.get('lost').dataset.state = lost ? 'bad' : '';
    this.bar.setAttribute('width', Math.min(full, 1) * 100);
    this.bar.setAttribute('data-state', full >= 0.8 ? 'high' : 'fine');
    this.points = points(this.name);
    this.rates.update(this.points);
    this.ring.update(this.points);
    this.renderTable();
  }

  currentRates() {
    const [first, last] = [state.recent[0], state.recent.at(-1)];
    const seconds = last.now - first.now;
    if (seconds <= 0) {
      // Just opened: what the history knows.
      const known = points(this.name).filter((point) => point.in !== null);
      return known.length ? known.at(-1) : { in: 0, out: 0 };
    }
    const [a, b] = [first.signals[this.name], last.signals[this.name]];
    return { in: (b.received - a.received) / seconds, out: (b.exported - a.exported) / seconds };
  }

  renderTable() {
    if (!this.details.open) return;
    const rows = minutes(this.points).map((minute) => [
      minute.label,
      rate(minute.in),
      rate(minute.out),
      count(minute.lost),
      percent(minute.fill),
      minute.up,
    ]);
    const heads = ['minute from', 'in /s', 'out /s', 'lost', 'ring, most', 'collector'];
    replaceTable(this.table, `${this.name}, minute by minute`, heads, rows);
  }
}

// From totals to rates: one point for each sample, null where there is nothing to compare with.
function points(name) {
  const found = [];
  let before = null;
  for (const { at, signals } of state.samples) {
    const now = signals[name];
    if (now === undefined) continue;
    const seconds = before === null ? 0 : at - before.at;
    const comparable = seconds > 0 && seconds < 3 * state.interval && now.received >= before.received;
    const per = (field) => (comparable ? (now[field] - before[field]) / seconds : null);
    found.push({
      at,
      seconds: comparable ? seconds : 0,
      in: per('received'),
      out: per('exported'),
      lost: per('dropped'),
      fill: now.fill,
      up: now.up,
    });
    before = { at, ...now };
  }
  return found;
}

function minutes(all) {
  const found = new Map();
  for (const point of all) {
    const minute = Math.floor(point.at / 60) * 60;
    if (!found.has(minute)) found.set(minute, { seconds: 0, in: 0, out: 0, lost: 0, fill: 0, ups: [] });
    const row = found.get(minute);
    row.seconds += point.seconds;
    for (const key of ['in', 'out', 'lost']) row[key] += (point[key] ?? 0) * point.seconds;
    row.fill = Math.max(row.fill, point.fill);
    row.ups.push(point.up);
  }
  return [...found].map(([minute, row]) => ({
    label: moment(minute).slice(0, -3),
    in: row.seconds ? row.in / row.seconds : 0,
    out: row.seconds ? row.out / row.seconds : 0,
    lost: Math.round(row.lost),
    fill: row.fill,
    up: row.ups.includes(false) ? 'down' : row.ups.includes(true) ? 'up' : 'not tried',
  }));
}

// ------------------------------------------------------------------------------- charts

let charts = 0;

class Chart {
  // series: [{key, label, style}]; most: the top of the scale where it is fixed
  constructor(title, series, most = null) {
    this.series = series;
    this.most = most;
    this.title = title;
    this.id = `chart-${++charts}`;
    this.readout = element('span', { class: 'readout', 'aria-hidden': 'true' });
    this.svg = drawn('svg', { role: 'img', class: 'chart' });
    this.legend = element('span', { class: 'legend', 'aria-hidden': 'true' });
    if (series.length > 1) {
      for (const { label, style } of series) {
        const line = drawn('path', { class: `line ${style}`, d: 'M0 5H22' });
        const swatch = drawn('svg', { viewBox: '0 0 22 10', width: 22, height: 10 }, line);
        this.legend.append(element('span', {}, swatch, label));
      }
    }
    this.root = element(
      'figure',
      {},
      element('figcaption', {}, element('span', {}, title.replace(/^.*?: /, '')), this.legend, this.readout),
      this.svg,
    );
    this.svg.addEventListener('pointermove', (event) => this.read(event));
    this.svg.addEventListener('pointerleave', () => say(this.readout, ''));
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  update(all) {
    this.points = all;
    this.draw();
  }

  format(value) {
    return this.most === null ? rate(value) : percent(value);
  }

  top() {
    if (this.most !== null) return this.most;
    const highest = Math.max(
      1, ...this.points.flatMap((point) => this.series.map(({ key }) => point[key] ?? 0)),
    );
    const magnitude = 10 ** Math.floor(Math.log10(highest));
    return [1, 2, 5, 10].map((step) => step * magnitude).find((step) => step >= highest);
  }

  draw() {
    const width = Math.floor(this.root.clientWidth);
    if (!width || !this.points) return;
    const height = 120;
    const box = { left: 44, right: width - 6, top: 8, bottom: height - 20 };
    const end = state.status.now;
    const begin = end - state.span;
    const top = this.top();
    const x = (at) => box.left + ((at - begin) / state.span) * (box.right - box.left);
    const y = (value) => box.bottom - (Math.min(value, top) / top) * (box.bottom - box.top);
    this.scale = { x, begin };
    const parts = [drawn('title', { id: this.id }, this.inWords(top))];
    parts.push(this.hatch());
    for (const [from, to] of outages(this.points, begin, end)) {
      const left = x(from);
      const wide = Math.max(x(to) - left, 2);
      parts.push(
        drawn('rect', {
          class: 'outage', x: left, y: box.top, width: wide, height: box.bottom - box.top,
          fill: `url(#${this.id}-hatch)`,
        }),
      );
      if (wide > 90) parts.push(text('collector down', left + 4, box.top + 11, 'start', 'outage-label'));
    }
    for (const share of [0, 0.5, 1]) {
      const level = y(top * share);
      parts.push(drawn('path', { class: 'grid', d: `M${box.left} ${level}H${box.right}` }));
      parts.push(text(this.format(top * share), box.left - 6, level + 4, 'end'));
    }
    for (const [minute, anchor] of [[10, 'start'], [5, 'middle'], [0, 'end']]) {
      const label = minute ? `${minute} min ago` : 'now';
      parts.push(text(label, x(end - minute * 60), height - 5, anchor));
    }
    for (const { key, style } of this.series) {
      const d = path(this.points.filter((point) => point.at >= begin), key, x, y);
      if (d) parts.push(drawn('path', { class: `line ${style}`, d }));
    }
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.svg.setAttribute('height', height);
    this.svg.setAttribute('aria-labelledby', this.id);
    this.svg.replaceChildren(...parts);
  }

  hatch() {
    return drawn(
      'pattern',
      {
        id: `${this.id}-hatch`, width: 6, height: 6, patternUnits: 'userSpaceOnUse',
        patternTransform: 'rotate(45)',
      },
      drawn('path', { class: 'hatch', d: 'M0 0V6' }),
    );
  }

  // What the picture says, for those who do not see it.
  inWords() {
    const told = this.series.map(({ key, label }) => {
      const values = this.points.map((point) => point[key]).filter((value) => value !== null);
      if (!values.length) return `${label}: no data yet`;
      const mean = values.reduce((total, value) => total + value, 0) / values.length;
      const most = Math.max(...values);
      return `${label} ${this.format(values.at(-1))} now, ${this.format(mean)} on average, ${this.format(most)} at most`;
    });
    const down = outages(this.points, state.status.now - state.span, state.status.now)
      .reduce((total, [from, to]) => total + to - from, 0);
    told.push(down ? `collector down for ${duration(down)} of it` : 'no outage');
    return `${this.title}, last ten minutes: ${told.join('; ')}`;
  }

  read(event) {
    if (!this.points?.length || !this.scale) return;
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    const near = this.points.reduce((best, point) =>
      Math.abs(this.scale.x(point.at) - at) < Math.abs(this.scale.x(best.at) - at) ? point : best,
    );
    const values = this.series.map(
      ({ key, label }) => `${label} ${near[key] === null ? '–' : this.format(near[key])}`,
    );
    say(this.readout, `${moment(near.at)}: ${values.join(', ')}`);
  }
}

function text(content, x, y, anchor, style = 'label') {
  return drawn('text', { x, y, 'text-anchor': anchor, class: style }, content);
}

function path(all, key, x, y) {
  let d = '';
  let joined = false;
  let before = null;
  for (const point of all) {
    if (point[key] === null) {
      joined = false;
    } else {
      const gap = before !== null && point.at - before.at > 3 * state.interval;
      d += `${joined && !gap ? 'L' : 'M'}${x(point.at).toFixed(1)} ${y(point[key]).toFixed(1)}`;
      joined = true;
    }
    before = point;
  }
  return d;
}

// Intervals [from, to] in which the collector was down, by the samples.
function outages(all, begin, end) {
  const found = [];
  let from = null;
  for (const { at, up } of all) {
    if (up === false && from === null) from = Math.max(at, begin);
    if (up === true && from !== null) {
      if (at > begin) found.push([from, at]);
      from = null;
    }
  }
  if (from !== null) found.push([from, end]);
  return found;
}

// ------------------------------------------------------------------------------- tables

const WIDE = new Set(['message', 'value', 'meaning']); // columns of long texts

function replaceTable(where, caption, heads, rows, numbers = true) {
  const content = JSON.stringify([heads, rows]);
  if (state.shown.get(where) === content) return;
  state.shown.set(where, content);
  const style = (index) =>
    numbers && index ? { class: 'number' } : WIDE.has(heads[index]) ? { class: 'wide' } : {};
  const label = (index) => (WIDE.has(heads[index]) ? {} : { 'data-head': heads[index] });
  // The roles say what the elements are anyway: without them browsers that see rows laid out
  // as blocks, as on a phone, take a table for none.
  const head = element(
    'tr',
    { role: 'row' },
    ...heads.map((each, index) =>
      element('th', { scope: 'col', role: 'columnheader', ...style(index) }, each),
    ),
  );
  const body = rows.map((row) =>
    element(
      'tr',
      { role: 'row' },
      ...row.map((cell, index) =>
        index === 0
          ? element('th', { scope: 'row', role: 'rowheader' }, cell)
          : element('td', { role: 'cell', ...style(index), ...label(index) }, cell),
      ),
    ),
  );
  const table = element(
    'table',
    { role: 'table', class: heads.some((each) => WIDE.has(each)) ? 'stacks' : '' },
    element('caption', { class: 'unseen' }, caption),
    element('thead', { role: 'rowgroup' }, head),
    element('tbody', { role: 'rowgroup' }, ...body),
  );
  // One of numbers may be wider than a phone: it scrolls by itself, also from the keyboard.
  const frame = element('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption }, table);
  where.replaceChildren(frame);
}

function replaceText(where, words) {
  if (state.shown.get(where) === words) return;
  state.shown.set(where, words);
  where.replaceChildren(element('p', { class: 'quiet' }, words));
}

function renderLosses(status, names) {
  const rows = [];
  const busy = names.filter((name) => isBusy(status.signals[name]));
  for (const [kind, verb] of [['dropped', 'lost'], ['filtered', 'removed by a setting']]) {
    const reasons = [...new Set(busy.flatMap((name) => Object.keys(status.signals[name][kind])))];
    for (const reason of reasons) {
      const counts = busy.map((name) => status.signals[name][kind][reason] ?? 0);
      if (counts.some((each) => each > 0)) {
        rows.push([reason, verb, ...counts.map(count), REASONS[reason] ?? '']);
      }
    }
  }
  for (const [outcome, why] of [
    ['invalid', 'requests (not items) that are not OTLP: answered with an error'],
    ['too_large', 'requests over RELAY_MAX_REQUEST_BYTES: answered with an error'],
    ['unavailable', 'requests while stopping or over a limit: answered with "later"'],
  ]) {
    const counts = busy.map((name) => status.signals[name].refused?.[outcome] ?? 0);
    if (counts.some((each) => each > 0)) rows.push([outcome, 'refused', ...counts.map(count), why]);
  }
  if (rows.length) {
    const heads = ['reason', 'what', ...busy, 'meaning'];
    replaceTable(byId('losses'), 'Removed and lost items by reason', heads, rows, false);
  } else {
    replaceText(byId('losses'), 'Nothing was removed, nothing was lost.');
  }
}

function renderErrors(status, names) {
  const all = names
    .flatMap((name) => status.signals[name].errors.map((each) => ({ name, ...each })))
    .sort((one, other) => one.at - other.at);
  const rows = [];
  for (const error of all) {
    const last = rows.at(-1);
    const same = ['name', 'code', 'message'].every((key) => last?.[key] === error[key]);
    if (same) {
      last.times += 1;
      last.at = error.at;
    } else {
      rows.push({ ...error, times: 1 });
    }
  }
  if (!rows.length) {
    replaceText(byId('errors'), 'None since the start.');
    return;
  }
  const cells = rows
    .reverse()
    .slice(0, 20)
    .map(({ name, at, code, message, times }) => [
      moment(at), name, code, times > 1 ? `${message} (${times} times in a row)` : message,
    ]);
  replaceTable(byId('errors'), 'Last errors, newest first', ['time', 'signal', 'code', 'message'], cells, false);
}

function renderWhere(status, names) {
  const rows = Object.entries(status.listening).map(([name, addresses]) => [
    name, name === 'admin' ? 'this page, metrics, health' : 'listens for OTLP', addresses.join(', '),
  ]);
  const destinations = new Map();
  for (const name of names) {
    const { endpoint, protocol } = status.signals[name].collector;
    const there = JSON.stringify([`are sent to (${protocol})`, endpoint]);
    destinations.set(there, [...(destinations.get(there) ?? []), name]);
  }
  for (const [there, sent] of destinations) rows.push([listed(sent), ...JSON.parse(there)]);
  replaceTable(byId('where'), 'Where the relay listens and sends to', ['what', 'does', 'address'], rows, false);
}

function renderConfiguration(status) {
  const rows = status.configuration;
  const chosen = rows.filter(({ source }) => source !== 'default');
  say(
    byId('set'),
    chosen.length
      ? `${chosen.length} of ${rows.length} settings differ from the default by: ` +
        `${[...new Set(chosen.map(({ source }) => source))].join(', ')}.`
      : 'All settings have their defaults.',
  );
  const cells = rows.map(({ name, signal, value, source }) => [
    signal ? `${name} (${signal})` : name, value, source,
  ]);
  replaceTable(byId('configuration'), 'Effective configuration', ['setting', 'value', 'source'], cells, false);
}

run();
