// Command manifests holds rendered manifests to the Kubernetes API server's own decoding and validation, custom resources
// to their operators' types, and every pod to the restricted Pod Security Standard.
//
// Arguments are files with YAML documents. It prints one line per fault and exits with 1 where there is one.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	autoscalingvalidation "k8s.io/kubernetes/pkg/apis/autoscaling/validation"
	"k8s.io/kubernetes/pkg/apis/batch"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	kubepolicy "k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
	podsecurityadmission "k8s.io/pod-security-admission/admission"
	podsecurityapi "k8s.io/pod-security-admission/api"
	podsecurity "k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

// Installed with its operator, whose module is larger than all of this together: only its name is known here.
var unchecked = schema.GroupKind{Group: "cilium.io", Kind: "CiliumNetworkPolicy"}

// A pod with this label is meant to have the host's network, which is the one thing that it may do against the standard.
const component, onHost = "app.kubernetes.io/component", "agent"

func main() {
	faults, seen := 0, map[string]int{}
	for _, path := range os.Args[1:] {
		check := checker{path: filepath.Base(path), seen: seen}
		if err := check.file(path); err != nil {
			check.fault("", err)
		}
		faults += check.faults
	}
	for _, kind := range []string{"Deployment", "StatefulSet", "DaemonSet", "Job", "NetworkPolicy"} {
		if seen[kind] == 0 {
			fmt.Printf("no %s among the manifests: they are not what was meant to be checked\n", kind)
			faults++
		}
	}
	total := 0
	for _, count := range seen {
		total += count
	}
	fmt.Printf("manifests: %d objects of %d kinds in %d files, %d faults\n", total, len(seen), len(os.Args)-1, faults)
	if faults > 0 {
		os.Exit(1)
	}
}

type checker struct {
	path   string
	seen   map[string]int
	faults int
}

func (c *checker) fault(object string, err error) {
	fmt.Printf("%s: %s: %v\n", c.path, object, err)
	c.faults++
}

func (c *checker) file(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	names := map[string]bool{}
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c.document(document, names)
	}
}

func (c *checker) document(text []byte, names map[string]bool) {
	var kind metav1.PartialObjectMetadata
	if err := yaml.Unmarshal(text, &kind); err != nil {
		c.fault("", err)
		return
	}
	if kind.Kind == "" {
		return
	}
	object := kind.Kind + " " + kind.Name
	if names[kind.APIVersion+object] {
		c.fault(object, errors.New("is there twice"))
	}
	names[kind.APIVersion+object] = true
	c.seen[kind.Kind]++
	group := kind.GroupVersionKind().GroupKind()
	if group == unchecked {
		return
	}
	if custom := customResource(group); custom != nil {
		if err := yaml.UnmarshalStrict(text, custom); err != nil {
			c.fault(object, err)
		}
		return
	}
	versioned, _, err := decoder.Decode(text, nil, nil)
	if err != nil {
		c.fault(object, err)
		return
	}
	if metadata, pod := podOf(versioned); pod != nil {
		c.standard(object, metadata, pod)
	}
	legacyscheme.Scheme.Default(versioned)
	internal, err := legacyscheme.Scheme.ConvertToVersion(versioned, runtime.InternalGroupVersioner)
	if err != nil {
		c.fault(object, err)
		return
	}
	if accessor, err := meta.Accessor(internal); err == nil && accessor.GetNamespace() == "" {
		// As kubectl sends it.
		accessor.SetNamespace(metav1.NamespaceDefault)
	}
	for _, err := range validate(internal) {
		c.fault(object, err)
	}
}

var podSpecs = podsecurityadmission.DefaultPodSpecExtractor{}

var evaluator = func() podsecurity.Evaluator {
	made, err := podsecurity.NewEvaluator(podsecurity.DefaultChecks())
	if err != nil {
		panic(err)
	}
	return made
}()

var decoder = serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()

func customResource(kind schema.GroupKind) any {
	switch kind {
	case schema.GroupKind{Group: "monitoring.coreos.com", Kind: "ServiceMonitor"}:
		return &monitoring.ServiceMonitor{}
	case schema.GroupKind{Group: "monitoring.coreos.com", Kind: "PrometheusRule"}:
		return &monitoring.PrometheusRule{}
	case schema.GroupKind{Group: "cert-manager.io", Kind: "Certificate"}:
		return &certmanager.Certificate{}
	}
	return nil
}

// What the API server says about an object that is created.
func validate(object runtime.Object) field.ErrorList {
	pods := corevalidation.PodValidationOptions{}
	switch object := object.(type) {
	case *apps.Deployment:
		return appsvalidation.ValidateDeployment(object, pods)
	case *apps.StatefulSet:
		return appsvalidation.ValidateStatefulSet(object, pods)
	case *apps.DaemonSet:
		return appsvalidation.ValidateDaemonSet(object, pods)
	case *batch.Job:
		return batchvalidation.ValidateJob(withSelector(object), batchvalidation.JobValidationOptions{RequirePrefixedLabels: true})
	case *core.Service:
		if object.Spec.ClusterIP != "" && len(object.Spec.ClusterIPs) == 0 {
			// The server writes the one into the other.
			object.Spec.ClusterIPs = []string{object.Spec.ClusterIP}
		}
		return corevalidation.ValidateServiceCreate(object)
	case *core.ServiceAccount:
		return corevalidation.ValidateServiceAccount(object)
	case *core.ConfigMap:
		return corevalidation.ValidateConfigMap(object)
	case *core.Secret:
		return corevalidation.ValidateSecret(object)
	case *networking.NetworkPolicy:
		return networkingvalidation.ValidateNetworkPolicy(object, networkingvalidation.NetworkPolicyValidationOptions{})
	case *networking.Ingress:
		return networkingvalidation.ValidateIngressCreate(object)
	case *kubepolicy.PodDisruptionBudget:
		return policyvalidation.ValidatePodDisruptionBudget(object, policyvalidation.PodDisruptionBudgetValidationOptions{})
	case *autoscaling.HorizontalPodAutoscaler:
		options := autoscalingvalidation.HorizontalPodAutoscalerSpecValidationOptions{}
		return autoscalingvalidation.ValidateHorizontalPodAutoscaler(object, options)
	}
	return field.ErrorList{field.NotSupported(field.NewPath("kind"), fmt.Sprintf("%T", object), []string{})}
}

// The server makes the selector of a Job that names none.
func withSelector(job *batch.Job) *batch.Job {
	labels := map[string]string{"batch.kubernetes.io/controller-uid": "made-by-the-server"}
	job.UID = "made-by-the-server"
	job.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	all := map[string]string{
		"batch.kubernetes.io/controller-uid": "made-by-the-server", "controller-uid": "made-by-the-server",
		"batch.kubernetes.io/job-name": job.Name, "job-name": job.Name,
	}
	for name, value := range job.Spec.Template.Labels {
		all[name] = value
	}
	job.Spec.Template.Labels = all
	return job
}

func podOf(object runtime.Object) (*metav1.ObjectMeta, *corev1.PodSpec) {
	metadata, spec, err := podSpecs.ExtractPodSpec(object)
	if err != nil {
		return nil, nil
	}
	return metadata, spec
}

func (c *checker) standard(object string, metadata *metav1.ObjectMeta, pod *corev1.PodSpec) {
	restricted := podsecurityapi.LevelVersion{Level: podsecurityapi.LevelRestricted, Version: podsecurityapi.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(restricted, metadata, pod) {
		if result.Allowed {
			continue
		}
		if result.ForbiddenReason == "host namespaces" && metadata.Labels[component] == onHost {
			continue
		}
		c.fault(object, fmt.Errorf("restricted: %s: %s", result.ForbiddenReason, result.ForbiddenDetail))
	}
	// Beyond the standard.
	for _, container := range append(append([]corev1.Container{}, pod.InitContainers...), pod.Containers...) {
		security := container.SecurityContext
		if security == nil || security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem {
			c.fault(object, fmt.Errorf("container %s can write to its root", container.Name))
		}
		if container.Resources.Limits.Memory().IsZero() {
			c.fault(object, fmt.Errorf("container %s has no limit of memory", container.Name))
		}
		if strings.HasSuffix(container.Image, ":latest") || !strings.ContainsAny(container.Image, ":@") {
			c.fault(object, fmt.Errorf("container %s has no version of its image", container.Name))
		}
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		c.fault(object, errors.New("has a token of the cluster that it does not need"))
	}
}
