/** Icons as stroked paths on a 16 × 16 grid; decoration only, with the text beside them or in aria-label. */

const PATHS = {
  overview: 'M2.5 8.5 8 3l5.5 5.5M4 7.5V13h8V7.5',
  workers: 'M2.5 3.5h11v3.5h-11zM2.5 9.5h11V13h-11zM5 5.25h.01M5 11.25h.01',
  hosts: 'M3 2.5h10v8H3zM6 13.5h4M8 10.5v3',
  operations: 'M2.5 4 4 5.5 6.5 3M2.5 11 4 12.5 6.5 10M9 4.5h4.5M9 11.5h4.5',
  gpus: 'M2.5 4.5h11v7h-11zM5 4.5v7M8 7.2h3v1.8H8zM4 11.5v2M7 11.5v2M10 11.5v2',
  logs: 'M3 3.5h10M3 6.5h7M3 9.5h10M3 12.5h5',
  recovery: 'M3.2 8A4.8 4.8 0 1 0 4.8 4.4M4.5 1.8v3h3M8 5.5V8l1.8 1.2',
  events: 'M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M8 5v3.2l2 1.3',
  action: 'M2.5 8.5l3.5 3.5 7.5-8',
  mute: 'M5 6.5a3 3 0 0 1 6 0c0 3 1 4 1.5 4.5h-9C4 10.5 5 9.5 5 6.5M7 13.2h2M2.5 2.5l11 11',
  admin: 'M8 2 3 4v4c0 3 2.2 5 5 6 2.8-1 5-3 5-6V4zM6 8l1.5 1.5L10.3 6.6',
  start: 'M5 3.5v9l7.5-4.5z',
  stop: 'M4.5 4.5h7v7h-7z',
  restart: 'M12.8 8A4.8 4.8 0 1 1 11.2 4.4M11.5 1.8v3h-3',
  kill: 'M8.8 2 4 9h3.5l-.5 5 5-7H8.5z',
  sun: 'M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6M8 1.5v1.3M8 13.2v1.3M1.5 8h1.3M13.2 8h1.3M3.4 3.4l.9.9M11.7 11.7l.9.9M3.4 12.6l.9-.9M11.7 4.3l.9-.9',
  moon: 'M12.8 9.7A5.3 5.3 0 0 1 6.3 3.2a5.3 5.3 0 1 0 6.5 6.5z',
  auto: 'M8 2.5a5.5 5.5 0 1 0 0 11zM8 2.5a5.5 5.5 0 0 1 0 11',
  search: 'M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9M10.3 10.3l3.2 3.2',
  exclude: 'M8 2.8a5.2 5.2 0 1 0 0 10.4A5.2 5.2 0 0 0 8 2.8M4.4 4.4l7.2 7.2',
  out: 'M6.5 3H3.5v10h3M7 8h6M10.5 5.5 13 8l-2.5 2.5',
  down: 'M8 3v8M4.5 8 8 11.5 11.5 8M3.5 13.5h9',
  copy: 'M5.5 5.5h7.5v8H5.5zM3 10.5v-8h7.5',
  chart: 'M2.5 2.5v11h11M5 10.5l2.5-3.5 2 2L13 4.5',
  close: 'M4 4l8 8M12 4l-8 8',
};

const SVG = 'http://www.w3.org/2000/svg';

export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', PATHS[name]);
  svg.append(path);
  return svg;
}
