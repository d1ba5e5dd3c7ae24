// As `cut_windows` in ser_model/pipeline_ser.py; `window_settings` in train/export.py gives the numbers.
export function* cutWindows(waveform, settings) {
  const numSamples = (seconds) => Math.round(seconds * settings.sampling_rate);
  const [size, minRest] = [numSamples(settings.window_s), numSamples(settings.min_rest_s)];
  let start = 0;
  for (; waveform.length - start >= size + minRest; start += size) yield waveform.subarray(start, start + size);
  yield waveform.subarray(start);
}
