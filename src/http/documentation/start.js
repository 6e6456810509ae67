// Shows the document of this service. Nothing is loaded from another host.
SwaggerUIBundle({
  dom_id: "#reference",
  url: "/api/v1/openapi.json",
  validatorUrl: null,
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  persistAuthorization: false,
  syntaxHighlight: { activated: false },
});
