// The live tab in the browser: microphone -> /live -> loudspeaker. Gradio calls this
// once, with the tab's `element`, its `props`, of which `value` is the voice's name, and
// `watch`, which tells when that changes.

const BLOCK = 0.02; // seconds that are sent at once
const LEAD = 0.04; // that wait before any is played
const MOST = 0.3; // up to which a break adds a block to that
const BEHIND = 2; // that may be unanswered; then the computer is too slow
const UNDER_WAY = 2; // messages; of a slow computer they grow, which costs it less
const FULL_SCALE = 1 << 15;

// In a thread of its own, 128 samples at a time, it fills blocks and plays what waits.
function defineWorklet() {
  class Live extends AudioWorkletProcessor {
    constructor({ processorOptions }) {
      super();
      Object.assign(this, processorOptions, { block: [], queue: [] });
      // Samples that were heard, and whose time to be played is over.
      Object.assign(this, { heard: 0, played: 0 });
      Object.assign(this, { playing: false, breaks: 0, least: 0, second: 0 });
      this.port.onmessage = ({ data }) => {
        this.queue = this.queue.concat(Array.from(data));
        this.playing ||= this.queue.length >= this.lead;
      };
    }

    process([[input]], [[output]]) {
      this.play(output);
      if (!input) return true;
      this.heard += input.length;
      this.block.push(...input);
      if (this.block.length >= this.size) {
        const { heard, played, breaks, playing } = this;
        const samples = Float32Array.from(this.block);
        this.block = [];
        this.port.postMessage({ samples, late: heard - played, breaks, playing });
      }
      return true;
    }

    play(output) {
      if (!this.playing) return;
      const samples = this.queue.splice(0, output.length);
      output.set(samples);
      this.played += samples.length;
      if (samples.length < output.length) {
        this.playing = false;
        this.breaks += 1;
        this.lead = Math.min(this.lead + this.size, this.most);
      }
      this.least = Math.min(this.least, this.queue.length);
      if (currentTime > this.second) this.skip();
    }

    // What has waited for a whole second in vain makes the rest late.
    skip() {
      if (this.least > this.lead) {
        this.played += this.queue.splice(0, this.least - this.lead).length;
        this.breaks += 1;
      }
      this.least = Infinity;
      this.second = currentTime + 1;
    }
  }
  registerProcessor("live", Live);
}

const find = (selector) => element.querySelector(selector);
const start = find(".start");
const audio = find("audio");
let session = null;

const tell = (text) => (find(".told").textContent = text);

function level(samples) {
  const energy = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
  return 10 * Math.log10(energy + 1e-6);
}

// What the browser would do for a call (cancel echoes, reduce noise, set the level) is
// off: a network hears what it was trained on.
const MICROPHONE = {
  audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
};

class Session {
  constructor(voice) {
    Object.assign(this, { voice, waiting: [], underWay: 0, told: 0 });
  }

  async open() {
    this.context = new AudioContext({ latencyHint: "interactive" });
    this.microphone = await navigator.mediaDevices.getUserMedia(MICROPHONE);
    const code = new Blob([`(${defineWorklet})()`], { type: "text/javascript" });
    const url = URL.createObjectURL(code);
    await this.context.audioWorklet.addModule(url);
    URL.revokeObjectURL(url);
    if (this.closed) return this.close();
    const rate = this.context.sampleRate;
    const query = new URLSearchParams({ voice: this.voice, rate });
    const address = new URL(`live?${query}`, document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => {
      if (this.closed) return;
      if (typeof data === "string") this.hear(JSON.parse(data));
      else this.play(new Int16Array(data));
    };
    this.socket.onclose = ({ reason }) => this.close(reason || "The connection ended");
  }

  // Text: first of all, how late the network is; then every change of the presence.
  hear(message) {
    if ("latency" in message) this.connect(message);
    else find(".presence").textContent = message.presence[0] ? "present" : "absent";
  }

  connect({ latency, rate }) {
    this.latency = latency / rate;
    const samples = (seconds) => Math.round(seconds * rate);
    const processorOptions = {
      size: samples(BLOCK),
      lead: samples(LEAD),
      most: samples(MOST),
    };
    this.node = new AudioWorkletNode(this.context, "live", {
      processorOptions,
      channelCount: 1,
      channelCountMode: "explicit",
      outputChannelCount: [1],
    });
    this.node.port.onmessage = ({ data }) => this.send(data);
    this.context.createMediaStreamSource(this.microphone).connect(this.node);
    const output = this.context.createMediaStreamDestination();
    this.node.connect(output);
    audio.srcObject = output.stream;
    audio.play().catch(() => {}); // it was stopped before it began
    tell("");
  }

  send({ samples, late, breaks, playing }) {
    if (this.closed) return;
    find(".in").value = level(samples);
    this.waiting.push(...samples);
    const rate = this.context.sampleRate;
    if (this.waiting.length > BEHIND * rate)
      return this.close("This computer is too slow for the model");
    if (this.underWay < UNDER_WAY) {
      const scale = (x) => Math.max(-1, Math.min(1 - 1 / FULL_SCALE, x)) * FULL_SCALE;
      this.socket.send(Int16Array.from(this.waiting, (x) => Math.round(scale(x))));
      this.waiting = [];
      this.underWay += 1;
    }
    if (!playing || this.context.currentTime < this.told + 0.5) return;
    this.told = this.context.currentTime;
    const total = Math.round((1000 * late) / rate);
    const model = (1000 * this.latency).toFixed(1);
    find(".late").textContent =
      `${total} ms late, of which ${model} ms are the model's, besides what the ` +
      `devices need; ${breaks} breaks`;
  }

  play(block) {
    this.underWay -= 1;
    if (!block.length) return;
    const samples = Float32Array.from(block, (x) => x / FULL_SCALE);
    find(".out").value = level(samples);
    this.node.port.postMessage(samples);
  }

  close(reason = "") {
    if (session === this) {
      session = null;
      audio.srcObject = null;
      show();
      tell(reason);
    }
    this.closed = true;
    this.socket?.close();
    this.microphone?.getTracks().forEach((track) => track.stop());
    if (this.context?.state !== "closed") this.context?.close();
  }
}

function show() {
  start.textContent = session ? "Stop" : "Start";
  start.disabled = !(session || props.value);
  find(".in").value = find(".out").value = -60;
  find(".presence").textContent = find(".late").textContent = "";
}

start.addEventListener("click", async () => {
  if (session) return session.close();
  session = new Session(props.value);
  show();
  tell("...");
  const opening = session;
  try {
    await opening.open();
  } catch (error) {
    opening.close(`The microphone cannot be used: ${error.message}`);
  }
});

// Another voice, or none.
watch("value", () => {
  session?.close();
  show();
  tell("");
});

show();
