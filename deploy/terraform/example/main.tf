# The trust that deploy/carnet.yaml needs.
terraform {
  required_version = ">= 1.6"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.0"
    }
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 4.0"
    }
  }
}

provider "google" {
  project = "ml-prod"
}

provider "azurerm" {
  features {}
  subscription_id = "99999999-9999-9999-9999-999999999999"
}

locals {
  issuer = "https://carnet.example.com"
}

module "google" {
  source         = "../google"
  project        = "ml-prod"
  project_number = "123456789"
  pool           = "ml-pool"
  issuer_url     = local.issuer
  tenants        = ["11111111-1111-1111-1111-111111111111"]
  attributes     = ["team"]
  targets = {
    vertex-training = {
      service_account = "trainer@ml-prod.iam.gserviceaccount.com"
      rules           = ["vision-training"]
    }
  }
  # Where Google cannot reach the issuer: jwks_json = file("${path.module}/jwks.json")
}

module "azure" {
  source              = "../azure"
  resource_group_name = "ml"
  location            = "westeurope"
  issuer_url          = local.issuer
  identities          = { ml = { targets = ["azure-ml"] } }
}

output "audience" {
  value = module.google.audience
}

output "client_ids" {
  value = module.azure.client_ids
}
