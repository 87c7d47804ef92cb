/** Questions before anything is done: a real dialog, which asks once, shows why it was refused, and stays until closed. */
import { html, render, useEffect, useId, useLayoutEffect, useRef, useState } from "../core/html.js";
import { Refused } from "./basics.js";

const host = () => document.getElementById("dialogs");

/** Shows a component in a dialog; it gets `close`. */
export function open(Component, props) {
  const close = () => render(null, host());
  render(
    html`<${Component} key=${crypto.getRandomValues(new Uint32Array(1))[0]} ...${props} close=${close} />`,
    host(),
  );
}

/**
 * A question. `act()` does what was asked for and returns what to announce; an error is shown, and may be tried again.
 *
 * `why` says why it would be refused now: it may change while the question is open.
 */
export function Question({ title, verb, kind = "primary", why = "", act, close, children, otherwise = "Not now" }) {
  const box = useRef(null);
  const heading = useId();
  const reason = useId();
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState(null);
  useLayoutEffect(() => {
    const dialog = box.current;
    dialog.showModal();
    return () => dialog.close(); // gives the focus back to where it was
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    if (busy || why) return;
    setBusy(true);
    setFailure(null);
    try {
      const said = await act();
      close();
      if (said) announce(said);
    } catch (error) {
      setBusy(false);
      setFailure(error);
    }
  };
  const end = (event) => {
    event?.preventDefault();
    if (!busy) close();
  };
  return html`<dialog
    ref=${box}
    class="dialog"
    aria-labelledby=${heading}
    onCancel=${end}
    onClick=${(event) => event.target === box.current && end()}
  >
    <form onSubmit=${submit}>
      <h2 id=${heading}>${title}</h2>
      <div class="dialog-body">${children}</div>
      ${why && html`<p class="dialog-why" id=${reason} role="status">${why}.</p>`}
      ${failure && html`<${Refused} failure=${failure} />`}
      <footer>
        <button type="button" class="button" onClick=${end} disabled=${busy}>${otherwise}</button>
        <button
          type="submit"
          class=${`button button-${kind}`}
          disabled=${busy || Boolean(why)}
          aria-describedby=${why ? reason : undefined}
        >${busy ? "Asking…" : verb}</button>
      </footer>
    </form>
  </dialog>`;
}

/** A group of choices of which one is taken; each `{value, label, detail, why}`. */
export function Choices({ legend, name, value, onChange, options }) {
  return html`<fieldset class="choices">
    <legend>${legend}</legend>
    ${options.map(
      (option) => html`<label key=${option.value} class=${`choice ${option.why ? "choice-off" : ""}`}>
        <input
          type="radio"
          name=${name}
          value=${option.value}
          checked=${value === option.value}
          disabled=${Boolean(option.why)}
          onChange=${() => onChange(option.value)}
        />
        <span><strong>${option.label}</strong><small>${option.why || option.detail}</small></span>
      </label>`,
    )}
  </fieldset>`;
}

/** Why somebody asks, in their words. */
export function Reason({ value, onChange }) {
  return html`<label class="field">
    <span>Why <small>for the record</small></span>
    <input value=${value} maxlength="500" onInput=${(event) => onChange(event.target.value)} />
  </label>`;
}

let said;
/** Tells something to everybody, those included who do not see it; it goes away by itself. */
export function announce(text) {
  const place = document.getElementById("announcements");
  place.textContent = text;
  place.classList.add("shown");
  clearTimeout(said);
  said = setTimeout(() => {
    place.classList.remove("shown");
    place.textContent = "";
  }, 6000);
}

/** Ends what is open when the view is another. */
export function useClosing(route) {
  useEffect(() => () => render(null, host()), [route]);
}
