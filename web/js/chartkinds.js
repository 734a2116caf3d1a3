/** The charts of a worker and of a host: the measurements of each, and the format of their values. */

import { formatBytes, formatPercent } from './format.js';
import { formatNumber, t } from './i18n.js';

const rate = (value) => t('chart.rate', { bytes: formatBytes(value) });
const plain = (value) => formatNumber(value, value < 10 ? 2 : 0);

/** `series`: of the response, or of each GPU. */
const OF_WORKER = [
  { name: 'cpu', format: formatPercent, ceiling: 100, series: ['cpu_percent'] },
  { name: 'memory', format: formatBytes, bytes: true, series: ['rss_bytes'] },
  { name: 'gpu', format: formatPercent, ceiling: 100, series: ['gpu_percent'] },
  { name: 'gpu_memory', format: formatBytes, bytes: true, series: ['gpu_memory_bytes'] },
];
export const OF_HOST = [
  { name: 'cpu', format: formatPercent, ceiling: 100, series: ['cpu_percent'] },
  { name: 'memory', format: formatBytes, bytes: true, series: ['memory_used_bytes'] },
  { name: 'load', format: plain, ceiling: 1, series: ['load1'] },
  { name: 'gpu', format: formatPercent, ceiling: 100, gpu: 'utilization_percent' },
  { name: 'gpu_memory', format: formatBytes, bytes: true, gpu: 'memory_used_bytes' },
  { name: 'network', format: rate, bytes: true, series: ['network_received_bytes_per_s', 'network_sent_bytes_per_s'] },
  { name: 'disk', format: formatBytes, bytes: true, series: ['disk_free_bytes'] },
];

const watts = (value) => `${formatNumber(value)} W`;
const degrees = (value) => `${formatNumber(value)} °C`;

/** The charts of one GPU of a host. */
export function kindsOfGpu(index) {
  return [
    { name: 'gpu', format: formatPercent, ceiling: 100, gpu: 'utilization_percent', index },
    { name: 'gpu_memory', format: formatBytes, bytes: true, gpu: 'memory_used_bytes', index },
    { name: 'power', format: watts, gpu: 'power_w', index },
    { name: 'temperature', format: degrees, gpu: 'temperature_c', index },
  ];
}

/** A number from a log, with four significant digits. */
export function formatMetric(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(3);
  return formatNumber(value, size >= 1000 ? 0 : Math.max(0, 3 - Math.floor(Math.log10(size || 1))));
}

/** The metrics of a worker in the live feed, from [{name, value}] or {name: value}. */
export function metricsOf(worker) {
  const { metrics } = worker;
  if (!metrics) return {};
  return Array.isArray(metrics) ? Object.fromEntries(metrics.map((one) => [one.name, one.value])) : metrics;
}

/** The charts of a worker; numbers from its log first, because they were declared explicitly. */
export function kindsOfWorker(data) {
  return [...(data.metrics || []).map(({ name }) => kindOfMetric(name)), ...OF_WORKER];
}

function kindOfMetric(name) {
  return { name: `log:${name}`, metric: name, format: formatMetric, fromZero: false };
}

export function kindNamed(name) {
  return name.startsWith('log:') ? kindOfMetric(name.slice(4)) : OF_WORKER.find((kind) => kind.name === name) || null;
}

export const titleOf = (kind) => kind.metric || t(`chart.${kind.name}`);

/** [{label, at, values}]: one line for each GPU, for each series, or for the single number. */
export function linesOf(kind, data) {
  if (kind.gpu) {
    return (data.gpus || [])
      .filter((gpu) => gpu.series[kind.gpu] && (kind.index === undefined || gpu.index === kind.index))
      .map((gpu) => ({ label: t('chart.gpu_n', { n: String(gpu.index) }), at: gpu.at, values: gpu.series[kind.gpu] }));
  }
  if (kind.metric) {
    const found = (data.metrics || []).find((metric) => metric.name === kind.metric);
    return found && found.series.value ? [{ label: kind.metric, at: found.at, values: found.series.value }] : [];
  }
  return kind.series.filter((name) => data.series[name]).map((name) => ({ label: t(`chart.${kind.series.length > 1 ? name : kind.name}`), at: data.at, values: data.series[name] }));
}
