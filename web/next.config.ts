import path from "node:path";
import type { NextConfig } from "next";

const config: NextConfig = {
  // Static files: any web server will do. Where the API is, the page learns at run time from /config.json.
  output: "export",
  images: { unoptimized: true },
  reactStrictMode: true,
  // `make check` runs tsc; a build shall not need the time for it again.
  typescript: { ignoreBuildErrors: true },
  turbopack: { root: path.join(import.meta.dirname, "..") },
};

export default config;
