{{- define "carnet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for what is put behind it. */}}
{{- define "carnet.fullname" -}}
{{- $name := include "carnet.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "carnet.selector" -}}
app.kubernetes.io/name: {{ include "carnet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: broker
{{- end -}}

{{/* Without the chart's version: another chart alone restarts nothing. */}}
{{- define "carnet.podLabels" -}}
{{ include "carnet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: carnet
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "carnet.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: carnet
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of what belongs to the broker. */}}
{{- define "carnet.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "carnet.selector" . | nindent 2 }}
  {{- include "carnet.labels" . | nindent 2 }}
{{- end -}}

{{- define "carnet.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "carnet.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "carnet.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "carnet.configMap" -}}
{{- default (printf "%s-config" (include "carnet.fullname" .)) .Values.existingConfigMap -}}
{{- end -}}

{{- define "carnet.tlsSecret" -}}
{{- default (printf "%s-tls" (include "carnet.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{- define "carnet.storeKeySecret" -}}
{{- default (printf "%s-store-key" (include "carnet.fullname" .)) .Values.storeKey.secretName -}}
{{- end -}}

{{/* `true` where each pod has a volume: then pods are replaced rather than doubled, and never two have one file. */}}
{{- define "carnet.hasVolume" -}}
{{- if or (eq .Values.store.type "sqlite") .Values.store.spool.enabled -}}true{{- end -}}
{{- end -}}

{{- define "carnet.serverName" -}}
{{- default (printf "%s.%s.svc" (include "carnet.fullname" .) .Release.Namespace) .Values.metrics.serviceMonitor.serverName -}}
{{- end -}}

{{/* Targets, rules, shadow rules and operators: what a running broker takes up. */}}
{{- define "carnet.reloaded" -}}
{{- $sections := dict -}}
{{- range $name := list "targets" "rules" "operators" -}}
{{- with index $.Values.config $name }}{{ $_ := set $sections $name . }}{{ end -}}
{{- end -}}
{{- if .Values.shadow }}{{ $_ := set $sections "shadow" (dict "file" "shadow.yaml") }}{{ end -}}
{{- toYaml $sections -}}
{{- end -}}

{{/* Everything else: a change restarts the pods. */}}
{{- define "carnet.fixed" -}}
{{- $sections := omit (deepCopy .Values.config) "targets" "rules" "operators" -}}
{{- range $name, $section := $sections -}}
{{- if not $section }}{{ $sections = omit $sections $name }}{{ end -}}
{{- end -}}
{{- $tls := dict "certificate" "/etc/carnet/tls/tls.crt" "private_key" "/etc/carnet/tls/tls.key" -}}
{{- if .Values.tls.clientCa.secretName -}}
{{- $_ := set $tls "client_ca" (printf "/etc/carnet/client-ca/%s" .Values.tls.clientCa.key) -}}
{{- end -}}
{{- $_ := set $sections "server" (dict "grpc" (printf "%s:7443" .Values.bindAddress) "http" (printf "%s:7080" .Values.bindAddress) "tls" $tls) -}}
{{- $keys := list -}}
{{- range .Values.storeKey.keys }}{{ $keys = append $keys (printf "${file:/etc/carnet/store-key/%s}" .) }}{{ end -}}
{{- $_ := set $sections "store_key" $keys -}}
{{- if eq .Values.store.type "sqlite" -}}
{{- $_ := set $sections "store" "sqlite:/var/lib/carnet/carnet.db" -}}
{{- else -}}
{{- $_ := set $sections "store" "${file:/etc/carnet/postgres/url}" -}}
{{- end -}}
{{- if .Values.store.spool.enabled -}}
{{- $audit := default dict .Values.config.audit | deepCopy -}}
{{- $_ := set $audit "spool" "/var/lib/carnet/spool.db" -}}
{{- $_ := set $sections "audit" $audit -}}
{{- end -}}
{{- if .Values.trustedCa.configMap -}}
{{- $outbound := default dict .Values.config.outbound | deepCopy -}}
{{- $_ := set $outbound "ca_file" (printf "/etc/carnet/trusted-ca/%s" .Values.trustedCa.key) -}}
{{- $_ := set $sections "outbound" $outbound -}}
{{- end -}}
{{- toYaml $sections -}}
{{- end -}}

{{/* The hosts that the broker calls, one a line: those of the clouds that targets name, or their defaults. */}}
{{- define "carnet.hosts" -}}
{{- $urls := list (default "https://login.microsoftonline.com" .Values.config.entra.authority) -}}
{{- range $name, $target := .Values.config.targets -}}
{{- with $target.google -}}
{{- $urls = append $urls (default "https://sts.googleapis.com" .sts_endpoint) -}}
{{- $urls = append $urls (default "https://iamcredentials.googleapis.com" .iam_credentials_endpoint) -}}
{{- end -}}
{{- with $target.azure }}{{ with .authority }}{{ $urls = append $urls . }}{{ end }}{{ end -}}
{{- end -}}
{{- $hosts := list -}}
{{- range $urls }}{{ $hosts = append $hosts (get (urlParse .) "hostname") }}{{ end -}}
{{- concat $hosts .Values.networkPolicy.egress.hosts | uniq | sortAlpha | join "\n" -}}
{{- end -}}

{{/* What no schema can say in words that help. */}}
{{- define "carnet.check" -}}
{{- $single := and (eq (int .Values.replicas) 1) (not .Values.autoscaling.enabled) -}}
{{- if and (eq .Values.store.type "sqlite") (not $single) -}}
{{- fail "store.type is sqlite, one file of one broker: set replicas to 1 and autoscaling.enabled to false, or store.type to postgres" -}}
{{- end -}}
{{- if and (eq .Values.store.type "sqlite") .Values.store.spool.enabled -}}
{{- fail "store.spool.enabled goes with store.type postgres: SQLite's store is on a volume already" -}}
{{- end -}}
{{- if (default dict .Values.config.audit).spool -}}
{{- fail "config.audit.spool is the chart's to write: set store.spool.enabled, which gives each replica a volume for it" -}}
{{- end -}}
{{- if and .Values.trustedCa.configMap (default dict .Values.config.outbound).ca_file -}}
{{- fail "trustedCa.configMap and config.outbound.ca_file say the same thing twice: leave one of them out" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name is missing: the Issuer or ClusterIssuer that signs the broker's certificate" -}}
{{- end -}}
{{- if and .Values.tls.clientCa.secretName (not .Values.tls.clientCa.probeSecretName) -}}
{{- fail "tls.clientCa.probeSecretName is missing: under mutual TLS probes have to show a certificate, too" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not (default dict .Values.config.issuer).url) -}}
{{- fail "ingress.enabled publishes the issuer: config.issuer.url is missing, whose host it takes" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) -}}
{{- fail "autoscaling.maxReplicas is less than autoscaling.minReplicas" -}}
{{- end -}}
{{- if and .Values.agent.enabled (not (and .Values.agent.config.broker .Values.agent.config.targets)) -}}
{{- fail "agent.config needs broker (its address) and targets" -}}
{{- end -}}
{{- if and .Values.agent.enabled (not (or .Values.agent.config.allow_uids .Values.agent.config.allow_all_uids)) -}}
{{- fail "agent.config.allow_uids is missing: the users of the node who may ask the agent" -}}
{{- end -}}
{{- end -}}

{{/* Restricted Pod Security Standard. */}}
{{- define "carnet.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.runAsUser }}
runAsGroup: {{ .Values.runAsUser }}
fsGroup: {{ .Values.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "carnet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* How a probe asks: `(list . "grpc")` whether the broker is ready, `(list . "alive")` whether it answers. */}}
{{- define "carnet.asks" -}}
{{- $top := index . 0 -}}
{{- $what := index . 1 -}}
{{- if and (eq $what "alive") (not $top.Values.tls.clientCa.secretName) -}}
httpGet: { path: /healthz, port: http, scheme: HTTPS }
{{- else -}}
exec:
  command:
    - /usr/local/bin/carnet
    - health
    - --address=https://127.0.0.1:7443
    - --certificate=/etc/carnet/tls/tls.crt
    {{- if eq $what "alive" }}
    - --alive
    {{- end }}
    {{- if $top.Values.tls.clientCa.secretName }}
    - --client-certificate=/etc/carnet/probe/tls.crt
    - --client-key=/etc/carnet/probe/tls.key
    {{- end }}
{{- end -}}
{{- end -}}

{{/* The pod, for a Deployment or a StatefulSet. */}}
{{- define "carnet.pod" -}}
metadata:
  labels:
    {{- include "carnet.podLabels" . | nindent 4 }}
    {{- if .Values.serviceAccount.azure.clientId }}
    azure.workload.identity/use: "true"
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: carnet
    {{- if not .Values.existingConfigMap }}
    carnet/needs-restart: {{ include "carnet.fixed" . | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "carnet.serviceAccount" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  # The wait before SIGTERM, the broker's 20 s to drain, and something to spare.
  terminationGracePeriodSeconds: {{ add .Values.preStopSeconds 25 }}
  securityContext:
    {{- include "carnet.podSecurity" . | nindent 4 }}
  containers:
    - name: carnet
      image: {{ include "carnet.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [/usr/local/bin/carnet]
      args: [serve, --config=/etc/carnet/config/carnet.yaml]
      {{- with .Values.extraEnv }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - { name: grpc, containerPort: 7443, protocol: TCP }
        - { name: http, containerPort: 7080, protocol: TCP }
      startupProbe:
        {{- include "carnet.asks" (list . "alive") | nindent 8 }}
        {{- toYaml .Values.probes.startup | nindent 8 }}
      readinessProbe:
        {{- include "carnet.asks" (list . "grpc") | nindent 8 }}
        {{- toYaml .Values.probes.readiness | nindent 8 }}
      livenessProbe:
        {{- include "carnet.asks" (list . "alive") | nindent 8 }}
        {{- toYaml .Values.probes.liveness | nindent 8 }}
      {{- if .Values.preStopSeconds }}
      lifecycle:
        # Endpoints lose the pod while it still serves; only then does it stop taking calls.
        preStop: { sleep: { seconds: {{ .Values.preStopSeconds }} } }
      {{- end }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- include "carnet.containerSecurity" . | nindent 8 }}
      volumeMounts:
        # Whole folders: files that are mounted one by one never change.
        - { name: config, mountPath: /etc/carnet/config, readOnly: true }
        - { name: tls, mountPath: /etc/carnet/tls, readOnly: true }
        - { name: store-key, mountPath: /etc/carnet/store-key, readOnly: true }
        {{- if eq .Values.store.type "postgres" }}
        - { name: postgres, mountPath: /etc/carnet/postgres, readOnly: true }
        {{- end }}
        {{- if .Values.tls.clientCa.secretName }}
        - { name: client-ca, mountPath: /etc/carnet/client-ca, readOnly: true }
        - { name: probe, mountPath: /etc/carnet/probe, readOnly: true }
        {{- end }}
        {{- if .Values.trustedCa.configMap }}
        - { name: trusted-ca, mountPath: /etc/carnet/trusted-ca, readOnly: true }
        {{- end }}
        {{- if include "carnet.hasVolume" . }}
        - { name: data, mountPath: /var/lib/carnet }
        {{- end }}
        - { name: tmp, mountPath: /tmp }
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap: { name: {{ include "carnet.configMap" . }} }
    - name: tls
      secret: { secretName: {{ include "carnet.tlsSecret" . }}, defaultMode: 0440 }
    - name: store-key
      secret: { secretName: {{ include "carnet.storeKeySecret" . }}, defaultMode: 0440 }
    {{- if eq .Values.store.type "postgres" }}
    - name: postgres
      secret:
        secretName: {{ .Values.store.postgres.urlSecret.name }}
        defaultMode: 0440
        items: [{ key: {{ .Values.store.postgres.urlSecret.key | quote }}, path: url }]
    {{- end }}
    {{- if .Values.tls.clientCa.secretName }}
    - name: client-ca
      secret: { secretName: {{ .Values.tls.clientCa.secretName }}, defaultMode: 0440 }
    - name: probe
      secret: { secretName: {{ .Values.tls.clientCa.probeSecretName }}, defaultMode: 0440 }
    {{- end }}
    {{- if .Values.trustedCa.configMap }}
    - name: trusted-ca
      configMap: { name: {{ .Values.trustedCa.configMap }} }
    {{- end }}
    - name: tmp
      emptyDir: { sizeLimit: 64Mi }
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "carnet.selector" $ | nindent 10 }}
      {{- if not (include "carnet.hasVolume" $) }}
      # The pods of the revision that comes, without those of the one that goes.
      matchLabelKeys: [pod-template-hash]
      {{- end }}
    {{- end }}
    {{- end }}
{{- end -}}
