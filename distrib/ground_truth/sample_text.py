"""The words of the sample ground truth: openings of works long in the public domain, in four languages."""

from __future__ import annotations

import numpy as np

# Without î, ï, ß and œ, which cannot be put together from the letters of Pillow's built-in font.
PASSAGES: dict[str, str] = {
    "deu": (
        "In den alten Zeiten, wo das Wünschen noch geholfen hat, lebte ein König, dessen Töchter waren alle "
        "schön; aber die jüngste war so schön, dass die Sonne selber, die doch so vieles gesehen hat, sich "
        "verwunderte, so oft sie ihr ins Gesicht schien. Aufklärung ist der Ausgang des Menschen aus seiner "
        "selbst verschuldeten Unmündigkeit. Wer reitet so spät durch Nacht und Wind? Es ist der Vater mit "
        "seinem Kind. Wie froh bin ich, dass ich weg bin! Bester Freund, was ist das Herz des Menschen! Ich "
        "weiss nicht, was soll es bedeuten, dass ich so traurig bin; ein Märchen aus alten Zeiten, das kommt "
        "mir nicht aus dem Sinn. Die Luft ist kühl und es dunkelt, und ruhig fliesst der Rhein. Mit gelben "
        "Birnen hänget und voll mit wilden Rosen das Land in den See. Über allen Gipfeln ist Ruh, in allen "
        "Wipfeln spürest du kaum einen Hauch."
    ),
    "fra": (
        "Le bon sens est la chose du monde la mieux partagée; car chacun pense en être si bien pourvu, que "
        "ceux même qui sont les plus difficiles à contenter en toute autre chose n'ont point coutume d'en "
        "désirer plus qu'ils en ont. L'homme est né libre, et partout il est dans les fers. La Cigale, ayant "
        "chanté tout l'été, se trouva fort dépourvue quand la bise fut venue. Nous étions à l'étude, quand "
        "le Proviseur entra, suivi d'un nouveau habillé en bourgeois et d'un garçon de classe qui portait un "
        "grand pupitre. L'homme n'est qu'un roseau, le plus faible de la nature; mais c'est un roseau "
        "pensant. Mais où sont les neiges d'antan? Les sanglots longs des violons de l'automne blessent mon "
        "coeur d'une langueur monotone. La raison du plus fort est toujours la meilleure; nous l'allons "
        "montrer tout à l'heure. Un agneau se désaltérait dans le courant d'une onde pure."
    ),
    "eng": (
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be "
        "in want of a wife. It was the best of times, it was the worst of times, it was the age of wisdom, "
        "it was the age of foolishness. Call me Ishmael. Some years ago, never mind how long precisely, "
        "having little or no money in my purse, I thought I would sail about a little and see the watery "
        "part of the world. Shall I compare thee to a summer's day? Thou art more lovely and more temperate: "
        "rough winds do shake the darling buds of May. No man is an island, entire of itself; every man is a "
        "piece of the continent, a part of the main. The curfew tolls the knell of parting day, the lowing "
        "herd wind slowly o'er the lea. Full many a gem of purest ray serene, the dark unfathomed caves of "
        "ocean bear."
    ),
    "lat": (
        "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani, tertiam qui "
        "ipsorum lingua Celtae, nostra Galli appellantur. Hi omnes lingua, institutis, legibus inter se "
        "differunt. Arma virumque cano, Troiae qui primus ab oris Italiam, fato profugus, Laviniaque venit "
        "litora. Quousque tandem abutere, Catilina, patientia nostra? Odi et amo. Quare id faciam, fortasse "
        "requiris: nescio, sed fieri sentio et excrucior. In nova fert animus mutatas dicere formas corpora; "
        "di, coeptis, nam vos mutastis et illas, adspirate meis. Nox est perpetua una dormienda. Exegi "
        "monumentum aere perennius regalique situ pyramidum altius."
    ),
}
LANGUAGES = tuple(PASSAGES)


def excerpt(bits: np.random.Philox, language: str, shortest: int, longest: int) -> str:
    """Some words in a row of a language's passage, ``shortest`` to ``longest`` characters (NFC).

    Draws raw 64-bit values only: numpy keeps those the same in every version, and so the texts.
    """
    words = PASSAGES[language].split(" ")
    wanted = shortest + int(bits.random_raw()) % (longest - shortest + 1)
    start = int(bits.random_raw()) % len(words)
    text = words[start]
    for word in (words + words)[start + 1 :]:
        if len(text) >= shortest and len(text) + 1 + len(word) > wanted:
            break
        text += " " + word
    return text
