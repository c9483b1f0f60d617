FROM node:24-bookworm-slim
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev && npm cache clean --force
COPY . .
RUN mkdir -p /data && chown node:node /data
USER node
ENV DATA_DIR=/data
ENTRYPOINT ["node", "mathllm.ts"]
CMD ["start"]
