// Serve Azurite's blob service for as long as the process that started this one lives.
//
// The parent holds the other end of stdin and never writes: it ends when the parent does, however
// the parent ends. Nobody is left to clean up then, so the folder with the data goes as well.
//
// Usage: node serve.js --location FOLDER [options of azurite-blob]
"use strict";

const fs = require("node:fs");

process.stdin.resume();
process.stdin.on("close", () => {
  const location = process.argv[process.argv.indexOf("--location") + 1];
  fs.rmSync(location, { recursive: true, force: true, maxRetries: 3 });
  process.exit();
});
process.stdin.unref(); // Else waiting for the parent keeps this process alive after SIGTERM.

// Every 5 s Azurite saves what it knows of all blobs, which with many of them stops it for a second.
// Nobody will ever load it.
require("lokijs").prototype.autosaveDirty = () => false;

require("azurite/dist/src/blob/main.js");
