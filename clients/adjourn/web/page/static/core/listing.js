/** PURE. What a watch of jobs comes to. */

/** Takes messages of WatchJobs in: a list without tokens, which the first token ends, then changes. */
export class Listing {
  constructor(state) {
    this.state = state;
    this._incoming = null;
  }

  /** A new connection: a list that was not complete begins again. */
  begin() {
    this._incoming = null;
  }

  take(message) {
    if (!message.resumeToken) {
      if (!message.job) this._incoming = null; // the list begins anew
      this._incoming ??= new Map();
      if (message.job) this._incoming.set(message.job.name, message.job);
      return;
    }
    if (this._incoming || !this.state.listed) {
      this.state.byName = this._incoming ?? new Map();
      this._incoming = null;
      this.state.listed = true;
    }
    if (message.job) this.state.byName.set(message.job.name, message.job);
    else if (message.deleted) this.state.byName.delete(message.deleted);
  }
}
