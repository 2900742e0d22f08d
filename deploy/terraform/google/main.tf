# A workload identity pool that trusts one broker, its provider, and who may become which service account.
terraform {
  required_version = ">= 1.6"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.0"
    }
  }
}

module "condition" {
  source         = "./condition"
  project_number = var.project_number
  pool           = var.pool
  provider_id    = var.provider_id
  tenants        = var.tenants
  targets        = var.targets
  attributes     = var.attributes
}

resource "google_project_service" "carnet" {
  for_each           = toset(var.enable_services ? ["iam.googleapis.com", "iamcredentials.googleapis.com", "sts.googleapis.com"] : [])
  project            = var.project
  service            = each.value
  disable_on_destroy = false
}

resource "google_iam_workload_identity_pool" "carnet" {
  project                   = var.project
  workload_identity_pool_id = var.pool
  display_name              = "carnet"
  depends_on                = [google_project_service.carnet]
}

resource "google_iam_workload_identity_pool_provider" "carnet" {
  project                            = var.project
  workload_identity_pool_id          = google_iam_workload_identity_pool.carnet.workload_identity_pool_id
  workload_identity_pool_provider_id = var.provider_id
  attribute_condition                = module.condition.condition
  attribute_mapping                  = module.condition.mapping
  oidc {
    issuer_uri        = var.issuer_url
    allowed_audiences = [module.condition.audience]
    jwks_json         = var.jwks_json
  }
}

# Additive: bindings that others made stay.
resource "google_service_account_iam_member" "carnet" {
  for_each           = module.condition.bindings
  service_account_id = "projects/-/serviceAccounts/${each.value.service_account}"
  role               = "roles/iam.workloadIdentityUser"
  member             = each.value.member
  depends_on         = [google_iam_workload_identity_pool.carnet]
}
