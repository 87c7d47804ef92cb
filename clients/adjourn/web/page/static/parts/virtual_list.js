/** A long list of which only the rows in sight are there. All rows have one height, in pixels. */
import { html, useEffect, useLayoutEffect, useRef, useState } from "../core/html.js";

const BEYOND = 8; // rows above and below that are there as well

/**
 * `row(index)` draws one. `stick` keeps the end in sight until the person scrolls away, and `onStick` tells that.
 * The arrow keys, Home and End go from row to row, to the first link or button of each.
 */
export function VirtualList({
  length,
  height,
  row,
  label,
  role = "rowgroup",
  stick,
  onStick,
  className = "",
  keys = true,
}) {
  const box = useRef(null);
  const [view, setView] = useState({ top: 0, size: 800 });
  const wanted = useRef(null);

  useLayoutEffect(() => {
    const measure = () =>
      setView((old) => (old.size === box.current.clientHeight ? old : { ...old, size: box.current.clientHeight }));
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => {
    if (stick) box.current.scrollTop = box.current.scrollHeight;
  }, [stick, length, height, view.size]);
  useEffect(() => {
    if (wanted.current === null) return;
    const found = box.current.querySelector(`[data-index="${wanted.current}"] :is(a, button)`);
    if (found) {
      found.focus({ preventScroll: true });
      wanted.current = null;
    }
  });

  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current;
    setView((old) => ({ ...old, top: scrollTop }));
    if (onStick) onStick(scrollHeight - scrollTop - clientHeight < height * 1.5);
  };
  const onKeyDown = (event) => {
    const at = Number(event.target.closest("[data-index]")?.dataset.index);
    const page = Math.max(Math.floor(view.size / height) - 1, 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[
      event.key
    ];
    if (!keys || Number.isNaN(at) || step === undefined) return;
    event.preventDefault();
    const next = Math.min(Math.max(at + step, 0), length - 1);
    wanted.current = next;
    const top = next * height;
    if (top < box.current.scrollTop) box.current.scrollTop = top;
    else if (top + height > box.current.scrollTop + view.size) box.current.scrollTop = top + height - view.size;
    setView((old) => ({ ...old, top: box.current.scrollTop }));
  };

  const first = Math.max(Math.min(Math.floor(view.top / height), length) - BEYOND, 0);
  const last = Math.min(first + Math.ceil(view.size / height) + 2 * BEYOND, length);
  const rows = [];
  for (let index = first; index < last; index += 1) {
    rows.push(
      html`<div
        key=${index}
        class="virtual-row"
        data-index=${index}
        style=${{ top: `${index * height}px`, height: `${height}px` }}
        role="presentation"
      >${row(index)}</div>`,
    );
  }
  return html`<div
    ref=${box}
    class=${`virtual ${className}`}
    onScroll=${onScroll}
    onKeyDown=${onKeyDown}
    role=${role}
    aria-live=${role === "log" ? "off" : undefined}
    aria-label=${label}
    tabindex="0"
  >
    <div class="virtual-all" style=${{ height: `${length * height}px` }} role="presentation">${rows}</div>
  </div>`;
}
